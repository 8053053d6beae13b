"""Model repositories of a test: the project's models in other layouts, and small ones."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_scripts.publish import versions
from server.process.installation import PROJECT
from tests.support.checkpoints import packaged

MODELS = PROJECT / "model_repository"
ECHO = """
backend: "python_mp"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_INT32 dims: [ 2 ] } ]
output [ { name: "Y" data_type: TYPE_INT32 dims: [ 2 ] } ]
dynamic_batching {}
instance_group [ { name: "lead" kind: KIND_CPU }, { name: "shard" kind: KIND_CPU passive: true } ]
parameters { key: "engine" value { string_value: "echo" } }
parameters { key: "tensor_parallel_size" value { string_value: "2" } }
"""


@dataclass(frozen=True)
class Layout:
    """How a model is split; `policies` are the host policies of leads and of shards."""

    tp: int = 1
    pp: int = 1
    replicas: int = 1
    dtype: str = "float32"
    policies: tuple[str, str] = ("", "")
    hosts: int = 1
    placement: str = "list"

    @property
    def world_size(self) -> int:
        return self.tp * self.pp

    @property
    def name(self) -> str:
        pinned = "_pinned" if any(self.policies) else ""
        apart = f"_on{self.hosts}" if self.hosts > 1 else ""
        return f"tp{self.tp}_pp{self.pp}_x{self.replicas}_{self.dtype}{pinned}{apart}"

    def instance_group(self) -> str:
        lead, shard = (f'kind: KIND_CPU host_policy: "{each}"' for each in self.policies)
        groups = [f'{{ name: "lead" {lead} count: {self.replicas} }}']
        if passive := self.replicas * (self.world_size // self.hosts - 1):
            groups.append(f'{{ name: "shard" {shard} count: {passive} passive: true }}')
        return f"instance_group [ {', '.join(groups)} ]"

    def apply(self, config: str) -> str:
        """`config` with this layout and dtype, for a version made by hand: of engine torch, unless
        it says another."""
        engine = {} if '"engine"' in config else {"engine": "torch"}
        return with_parameters(self.laid_out(config), {**engine, "dtype": self.dtype})

    def laid_out(self, config: str) -> str:
        """`config` with this layout in the place of its own."""
        config = re.sub(
            r"^instance_group \[.*?^\]",
            self.instance_group(),
            config,
            flags=re.DOTALL | re.MULTILINE,
        )
        hosts = {"hosts": self.hosts, "placement": self.placement} if self.hosts > 1 else {}
        sizes = {"tensor_parallel_size": self.tp, "pipeline_parallel_size": self.pp, **hosts}
        return with_parameters(config, sizes)


def with_parameters(config: str, parameters: Mapping[str, Any]) -> str:
    """`config` with these parameters set, or without those that are None."""
    for key, value in parameters.items():
        config = re.sub(rf'^parameters {{ key: "{key}" .*\n', "", config, flags=re.MULTILINE)
        if value is not None:
            config += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
    return config


def add(repository: Path, name: str, config: str, files: Iterable[Path] = (), **texts: str) -> Path:
    """A model with these files, and `module="..."` written as module.py; its folder."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(config)
    for file in files:
        _link(str(file), str(version / file.name))
    for stem, text in texts.items():
        (version / f"{stem}.py").write_text(text)
    return version.parent


def newest(model: str) -> Path:
    """The version of a model of the project that is served."""
    folder = MODELS / model
    return folder / str(versions(folder)[-1])


def copy(repository: Path, *names: str) -> None:
    """Models of the project as they are, big files linked."""
    for name in names:
        shutil.copytree(
            MODELS / name,
            repository / name,
            copy_function=_link,
            ignore=shutil.ignore_patterns("__pycache__"),
        )


def _link(source: str, target: str) -> None:
    """A hard link: the server refuses links that lead out of its repository."""
    try:
        Path(target).hardlink_to(Path(source).resolve())
    except OSError:  # another file system
        shutil.copyfile(source, target)


RANKS_OF = {"embed": "embed_encoder", "chat": "chat_decoder"}
"""The step that has ranks, by the ensemble."""


def add_variant(repository: Path, layout: Layout, name: str = "", of: str = "embed") -> None:
    """The ensemble `of` once more as `name` (that of the layout, if that is not said), its ranks in
    this layout; needs the other steps there."""
    name, step = name or layout.name, RANKS_OF[of]
    ranks = f"{name}_{step.removeprefix(of + '_')}"
    source, checkpoint = MODELS / step, packaged(step)
    config = layout.apply((source / "config.pbtxt").read_text())
    files = [checkpoint.file(each) for each in ("config.json", "model.safetensors")]
    files += [
        path for path in newest(step).iterdir() if path.name in ("task.json", "tokenizer.json")
    ]
    config = config.replace(f'name: "{step}"', f'name: "{ranks}"')
    model = add(repository, ranks, config, files)
    if (source / "warmup").is_dir():
        shutil.copytree(source / "warmup", model / "warmup")
    ensemble = (MODELS / of / "config.pbtxt").read_text().replace(f'"{step}"', f'"{ranks}"')
    add(repository, name, ensemble.replace(f'name: "{of}"', f'name: "{name}"'))
