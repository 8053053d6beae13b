"""`N/manifest.json`: what a version directory holds, made from what, for which machine.

The build writes it; who may serve what it says is admission.py's. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .config import ModelConfig, TensorSpec
from .config_json import parse
from .errors import LoadError
from .paths import present, regular

NAME = "manifest.json"
FORMAT = 3
SUFFIXES = {"torch": "safetensors", "aot_inductor": "pt2", "onnxruntime": "onnx"}


@dataclass(frozen=True)
class Manifest:
    """A version directory's description.

    Attributes:
        artifact: hash of all that decides the files; not of what a build merely measured.
        layout: `tensor_parallel_size` and `pipeline_parallel_size`.
        inputs, outputs: `name`, `dtype` (NumPy's name) and `dims` without the batch dimension.
        source: `id`, `sha256` and `facts` of the checkpoint; of texts also `tokenizer`, the hash of
            the file that makes their ids.
        files: by name `size` in bytes and `sha256`.
        versions: of Python and of what took part in the build.
        hardware: `machine`; `cpu`, what a compiler was told, and `cpu_features`, the flags of
            /proc/cpuinfo that are needed; `gpu`, its `name` and `compute_capability`, or None.
        options: of the engine's build; of a model of transformers also `rows`: "packed",
            "rectangles" or "images".
        recipe: what the artifact was made by.
        accuracy: against the reference; where that did not fit the memory of the machine that built
            it, `verified: no`, and `why`.
        latency: as measured by the build, in milliseconds.
        built: when, UTC, ISO 8601.
    """

    artifact: str
    model: str
    family: str
    engine: str
    dtype: str
    layout: Mapping[str, int]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    source: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    options: Mapping[str, Any]
    recipe: Mapping[str, Any]
    accuracy: Mapping[str, Any]
    latency: Mapping[str, Any]
    built: str
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in `folder`, or None where there is none.

        Raises:
            LoadError: it cannot be read, or is of another format.
        """
        path = folder / NAME
        again = f"{run_again(folder.parent.name)}"
        if not present(folder, NAME):
            return None
        try:
            stored = json.loads(regular(folder, NAME).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise LoadError(f"{path} cannot be read ({error}); {again}") from None
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            was = stored.get("format") if isinstance(stored, dict) else None
            raise LoadError(f"{path} is of format {was}, but {FORMAT} is read now; {again}")
        known = {field.name for field in fields(cls)}
        if stored.keys() != known:
            wrong = ", ".join(sorted(stored.keys() ^ known))
            raise LoadError(f"{path} lacks keys or has unknown ones ({wrong}); {again}")
        return cls(**stored)

    @property
    def sample_dims(self) -> Mapping[str, Sequence[int]]:
        """Of inputs, by their names: what the recipe says for dims of -1."""
        samples: list[dict[str, list[int]]] = self.recipe.get("shapes", {}).get("samples", [])
        return samples[0] if samples else {}

    def write(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")


def tensors(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    """Inputs or outputs as a manifest has them."""
    return [{"name": each.name, "dtype": each.dtype, "dims": list(each.dims)} for each in specs]


def rank_file(engine: str, rank: int, world_size: int) -> str:
    """The name of a rank's engine in a version directory."""
    if engine == "tensorrt":
        return "model.plan" if world_size == 1 else f"model.plan.rank{rank}"
    return f"rank{rank}.{SUFFIXES[engine]}"


def configured(model_config: str, repository: str, version: str) -> ModelConfig:
    """What Triton hands to `initialize`, with the engine and dtype that the version was built with.

    Raises:
        ConfigError: as `parse`; also where config.pbtxt says otherwise than the manifest.
        LoadError: as `Manifest.read`.
    """
    built = Manifest.read(Path(repository) / version)
    made = (built.engine, built.dtype) if built else ()
    return parse(model_config, repository, version, *made)


def sha256(path: Path) -> str:
    """Hexadecimal; other threads run meanwhile."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_again(model: str) -> str:
    """What mends a version, as the end of a sentence."""
    return f"run `python -m build_scripts.build {model}`"
