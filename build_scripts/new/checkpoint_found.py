"""What a source is: a checkpoint that can be served, or a sentence that says why not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from build_scripts import (
    checkpoint_folder,
    checkpoint_images,
    checkpoint_tokenizer,
    gguf_folder,
    hub,
    layer_weights,
    step,
    tasks,
)
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.new import chain, task_found
from build_scripts.new.chain import Sizes, Takes
from build_scripts.places import PROJECT
from build_scripts.quiet import quiet
from python_mp.model.errors import LoadError
from python_mp.sharding.families.task import Kind, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from python_mp.sharding.families.arrangement import Rows

KINDS = "package:NAME, a folder, FILE.gguf, or hub:OWNER/NAME[@REVISION]"


@dataclass(frozen=True)
class Found:
    """
    Attributes:
        source: as recipe.toml has it; of the hub one commit.
        why: how the task is known.
        steps: what the ensemble's steps will read, by their names and files.
    """

    source: str
    checkpoint: Checkpoint
    config: PretrainedConfig
    kind: Kind
    why: str
    takes: Takes
    rows: Rows
    task: Task
    sizes: Sizes
    steps: Mapping[str, Mapping[str, str]]

    @property
    def architecture(self) -> str:
        return ", ".join(self.checkpoint.config.get("architectures") or [self.config.model_type])

    @cached_property
    def parameters(self) -> int:
        shapes = checkpoint_folder.tensors(self.checkpoint.path).values()
        return sum(math.prod(shape) for shape in shapes)

    @cached_property
    def longest(self) -> int | None:
        """Tokens of a text, special ones included; None where they have no end, or of images."""
        if self.kind == "generate":
            return self.task.context_length
        for text in self.steps.get("tokenizer", {}).values():
            said = json.loads(text)
            if isinstance(said, dict) and said.get("truncation"):
                most = int(said["truncation"]["max_length"])
                return most if most < 1 << 30 else None
        return None


def located(source: str, wanted: Kind | None) -> tuple[str, Path]:
    """The source as recipe.toml has it, and the folder where it lies now. Of the hub it is got, the
    weights only where its texts are those of what can be served.

    Raises:
        BuildError: it is not there.
    """
    kind, _, name = source.partition(":")
    if kind == "package":
        return source, gguf_folder.of(checkpoint_folder.package_folder(name))
    if kind == "hub":
        commit, folder = hub.located(name, hub.TEXTS)
        with quiet():
            _configured(folder, wanted)
        return hub.located(commit.removeprefix("hub:"))
    folder = Path(source).expanduser().resolve()
    if not folder.exists():
        raise BuildError(f"there is no folder {folder}; a source is {KINDS}")
    inside = folder.is_relative_to(PROJECT)
    return str(folder.relative_to(PROJECT) if inside else folder), gguf_folder.of(folder)


def read(source: str, folder: Path, wanted: Kind | None) -> Found:
    """
    Args:
        wanted: the task that the user has asked for.

    Raises:
        BuildError: it cannot be served, or not for that task.
    """
    from python_mp.sharding.families import skeleton

    config, kind, why = _configured(folder, wanted)
    checkpoint = Checkpoint(folder, kind)
    checkpoint_folder.tensors(folder)
    try:
        module, _ = skeleton.kind(config, kind)
        rows = skeleton.rows(config, kind)
    except LoadError as error:
        raise BuildError(f"{folder}: {error}") from None
    checkpoint.check_weights()
    takes: Takes = "image" if rows == "images" else "text"
    if (kind, takes) not in chain.ENDS:
        raise BuildError(
            f"{folder} is a {module.__name__}, which reads images, and has no classes: take a"
            " checkpoint that was trained as ForImageClassification"
        )
    task = tasks.made(kind, checkpoint)
    layer_weights.read(folder, task.layers)
    sizes = _sizes(checkpoint, config, takes, tasks.width_of(task, config))
    return Found(
        source,
        checkpoint,
        config,
        kind,
        why,
        takes,
        rows,
        task,
        sizes,
        _steps(checkpoint, kind, takes, sizes),
    )


def _configured(folder: Path, wanted: Kind | None) -> tuple[PretrainedConfig, Kind, str]:
    """What the texts say alone."""
    from python_mp.sharding.families import transformers

    if not (folder / "config.json").is_file():
        raise BuildError(_no_config(folder))
    try:
        config = transformers.read(folder / "config.json")
    except LoadError as error:
        raise BuildError(str(error)) from None
    raw = json.loads((folder / "config.json").read_text())
    kind, why = task_found.find(folder, raw, int(config.num_labels or 1), wanted)
    return config, kind, why


def _no_config(folder: Path) -> str:
    if (folder / checkpoint_folder.ADAPTER).is_file():
        return (
            f"{folder} is an adapter ({checkpoint_folder.ADAPTER}): merge it into the weights of"
            " its base model, and name the folder of the whole"
        )
    return f"{folder} has no config.json: a source is a checkpoint as transformers saves it"


def _sizes(checkpoint: Checkpoint, config: PretrainedConfig, takes: Takes, width: int) -> Sizes:
    if takes == "image":
        return Sizes(width, image=checkpoint_images.load(checkpoint).shape)
    return Sizes(
        width,
        has_types=checkpoint.takes_pairs and checkpoint_tokenizer.has_types(checkpoint, config),
    )


def _steps(
    checkpoint: Checkpoint, kind: Kind, takes: Takes, sizes: Sizes
) -> dict[str, dict[str, str]]:
    """As the build will write them, so that what it refuses is refused now."""
    return {
        each.job: step.SETTINGS[each.job](checkpoint)
        for each in chain.steps(kind, takes, sizes)
        if each.job not in chain.RANKED
    }
