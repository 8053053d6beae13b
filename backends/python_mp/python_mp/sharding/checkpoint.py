"""Which files of a folder are its checkpoint, and whether its config.json says what the encoder
family computes. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..model.errors import LoadError
from ..model.paths import present, regular

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
ENCODER: dict[str, tuple[object, ...]] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "is_causal": (False, None),
    "add_cross_attention": (False,),
    "transformers_weights": (None, WEIGHTS),
    "auto_map": (None,),
    "quantization_config": (None,),
}
"""What the encoder family computes, of all that transformers reads of a BERT's config.json; a key
that is not there stands for the first, except the model_type."""
ARCHITECTURE = re.compile(r"(?!Bert(?!Generation))\w+(Model|For[A-Z]\w+)")
"""A class of transformers for another model."""


def unsupported(config: Mapping[str, Any]) -> str | None:
    """What of a config.json the encoder family does not compute, to stand after "has"."""
    for key, supported in ENCODER.items():
        given = config.get(key, None if key == "model_type" else supported[0])
        if given not in supported:
            said = ", ".join(map(repr, supported))
            return f"{key} {given!r}; the encoder family supports {said}"
    for name in config.get("architectures") or ():
        if ARCHITECTURE.fullmatch(str(name)):
            return f"the architecture {name}; the encoder family supports BERT's"
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
