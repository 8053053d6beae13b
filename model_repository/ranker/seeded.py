"""Weights for the example `ranker`: a gated MLP, untrained, the same from the same seed; named by
recipe.toml."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.numpy import save_file

DIM, HIDDEN, BLOCKS, SEED, SAMPLES = 256, 1024, 4, 0, 200


def make(folder: Path, progress: Progress) -> dict[str, object]:
    """Writes `model.safetensors`, float32; returns facts for the manifest."""
    total = len(list(shapes()))
    named = progress.track(tensors(), total=total, description="ranker: model.safetensors")
    save_file(dict(named), folder / "model.safetensors")
    return {"trained": False, "seed": SEED}


def samples(_folder: Path) -> tuple[list[dict[str, NDArray[Any]]], None]:
    """Requests to judge engines by, FEATURES float32 [1, DIM]; nobody knows their right scores."""
    return _rows(SEED + 1), None


def calibration(_folder: Path) -> list[dict[str, NDArray[Any]]]:
    """Other ones, to calibrate with."""
    return _rows(SEED + 2)


def _rows(seed: int) -> list[dict[str, NDArray[Any]]]:
    rows = np.random.default_rng(seed).standard_normal((SAMPLES, 1, DIM), np.float32)
    return [{"FEATURES": row} for row in rows]


def tensors() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and float32 weights.

    Norms lie around 1; matrices keep the variance of what they are given, those that add to the
    residual stream divided by the number of blocks, so that activations stay near 1 at any depth.
    """
    random = np.random.default_rng(SEED)
    for name, shape in shapes():
        noise = random.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            yield name, 1 + np.float32(0.1) * noise
        elif name.endswith("bias"):
            yield name, np.float32(0.1) * noise
        else:
            adds = BLOCKS if name.endswith("down.weight") else 1
            yield name, noise / np.float32(np.sqrt(shape[-1] * adds))


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights; a matrix is [out, in]."""
    for index in range(BLOCKS):
        yield f"blocks.{index}.norm.weight", (DIM,)
        yield f"blocks.{index}.gate.weight", (HIDDEN, DIM)
        yield f"blocks.{index}.up.weight", (HIDDEN, DIM)
        yield f"blocks.{index}.down.weight", (DIM, HIDDEN)
    yield "norm.weight", (DIM,)
    yield "head.weight", (1, DIM)
    yield "head.bias", (1,)
