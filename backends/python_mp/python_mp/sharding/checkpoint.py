"""Which files of a folder are its checkpoint, and what of its config.json is not supported.

Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..model.errors import LoadError
from ..model.paths import present, regular

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def unsupported(config: Mapping[str, Any]) -> str | None:
    """What of a config.json nothing here computes, to stand after "has"."""
    for key in ("quantization_config", "compression_config"):
        if said := config.get(key):
            how = said.get("quant_method") if isinstance(said, dict) else None
            by = f" ({how})" if how else ""
            return f"{key}; quantised weights{by} are not read: take the original checkpoint"
    if config.get("transformers_weights") not in (None, WEIGHTS):
        return f"transformers_weights {config['transformers_weights']!r}; only {WEIGHTS} is read"
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"architectures {names!r}; it must be a list of names"
    return None


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold the weights: `model.safetensors`, else those that its index
    names, as in transformers; else the only `*.safetensors` that there is.

    Raises:
        LoadError: there are none or several, or one that the index names is missing.
    """
    if present(folder, WEIGHTS):
        return [WEIGHTS]
    if present(folder, INDEX):
        return _indexed(folder)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(names) == 1:
        return names
    if names:
        raise LoadError(
            f"{folder} has {', '.join(names)}, and which of them is the checkpoint is not said:"
            f" call it {WEIGHTS}, or add {INDEX}"
        )
    if pickles := sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES):
        raise LoadError(
            f"{folder} holds {pickles[0]}: pickle can run code; convert it to safetensors"
        )
    if converted := sorted(path.name for path in folder.glob("*.gguf")):
        raise LoadError(
            f"{folder} holds {converted[0]} and no safetensors: the build reads the file itself,"
            f" with the source {folder / converted[0]}"
        )
    raise LoadError(f"no *.safetensors in {folder}: it has no {WEIGHTS}")


def tensor_map(folder: Path) -> dict[str, str]:
    """The file of each tensor, as the index says. Raises LoadError for an index without sense."""
    path = regular(folder, INDEX)
    try:
        found: Any = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is no JSON: {error}") from None
    named = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise LoadError(f"{path} has no weight_map from tensors to files")
    return named


def _indexed(folder: Path) -> list[str]:
    names = sorted(set(tensor_map(folder).values()))
    for name in names:
        if Path(name).name != name or not present(folder, name):
            raise LoadError(f"{folder} has no {name}, which {INDEX} names")
    if not names:
        raise LoadError(f"{folder / INDEX} names no file")
    return names
