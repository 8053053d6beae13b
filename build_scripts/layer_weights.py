"""The weights of what follows a pooling, each in a folder of its own in the checkpoint's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from build_scripts.errors import BuildError
from python_mp.sharding.checkpoint import PICKLES, WEIGHTS
from python_mp.sharding.families.task import Layer

if TYPE_CHECKING:
    from torch import Tensor


def read(folder: Path, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """All their tensors, under their names.

    Raises:
        BuildError: one is missing, of another shape, or pickle; names the file.
    """
    found: dict[str, Tensor] = {}
    for layer in layers:
        if layer.shapes:
            found |= _read(folder / layer.name, layer)
    return found


def _read(folder: Path, layer: Layer) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        pickled = any(each.suffix in PICKLES for each in folder.glob("*"))
        hint = ": pickle can run code; convert it to safetensors" if pickled else ""
        raise BuildError(f"{folder} has no {WEIGHTS}{hint}.")
    try:
        found = {f"{layer.name}.{name}": tensor for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise BuildError(f"{path} cannot be read: {error}.") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != layer.shapes:
        raise BuildError(f"{path} holds {shapes}; its config.json asks for {layer.shapes}.")
    return found
