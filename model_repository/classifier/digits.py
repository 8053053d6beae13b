"""Weights for the `classifier`, trained on scikit-learn's handwritten digits; named by recipe.toml.

python model_repository/classifier/digits.py --images DIR    writes some held-out digits, to try
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from build_scripts.errors import BuildError
from module import BLOCKS, SIDE, Classifier

Array = NDArray[Any]
SEED, HELD_OUT, LEAST_ACCURACY = 0, 0.2, 0.97
EPOCHS, BATCH, RATE, DECAY = 30, 96, 4e-3, 0.05
SHIFT, TURN, SCALE = 0.5, 0.17, 0.1  # at most: pixels, radians, of the size
THREADS = 1  # always, as sums in another order have other bits; and two would wait for each other


def make(folder: Path, progress: Progress) -> dict[str, object]:
    """Train, judge by the held-out digits, and write `model.safetensors` (float32) to `folder`.

    The same machine writes the same bits again; another CPU may sum in another order.

    Returns:
        Facts for the manifest.

    Raises:
        BuildError: fewer than LEAST_ACCURACY of the held-out digits are recognised.
    """
    images, labels, held_out, expected = digits()
    epochs = progress.track(range(EPOCHS), description="classifier: training")
    with _reproducible():
        model = train(images, labels, epochs)
        accuracy = float((model(held_out).argmax(1) == expected).float().mean())
    if accuracy < LEAST_ACCURACY:
        raise BuildError(
            f"The classifier recognises {accuracy:.1%} of the held-out digits, which is less than"
            f" {LEAST_ACCURACY:.0%}: change SEED or EPOCHS in {Path(__file__).name}."
        )
    save_file(model.state_dict(), folder / "model.safetensors")
    return {
        "held_out_accuracy": round(accuracy, 4),
        "held_out_samples": len(expected),
        "trained_on": f"scikit-learn load_digits, {len(labels)} images",
        "seed": SEED,
    }


def samples(_folder: Path) -> tuple[list[dict[str, Array]], list[int]]:
    """The held-out digits as requests, PIXELS float32 [1, 8, 8], and what each shows."""
    _, _, images, labels = digits()
    return [{"PIXELS": image[None]} for image in images.numpy()], labels.tolist()


def calibration(_folder: Path) -> list[dict[str, Array]]:
    """Digits that it was trained with, in the same form."""
    images, *_ = digits()
    return [{"PIXELS": image[None]} for image in images.numpy()]


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images float32 [n, 8, 8] from 0 to 1 and labels int64 [n]; to train with, then held out."""
    data = load_digits()
    split = train_test_split(
        (data.images / 16).astype(np.float32),
        data.target.astype(np.int64),
        test_size=HELD_OUT,
        random_state=SEED,
        stratify=data.target,
    )
    images, held_out, labels, expected = map(torch.from_numpy, split)
    return images, labels, held_out, expected


def train(images: Tensor, labels: Tensor, epochs: Iterable[int]) -> nn.Module:
    """The classifier after EPOCHS passes over images [n, 8, 8] and labels [n]."""
    random = torch.Generator().manual_seed(SEED)
    model = initial(random)
    steps = ceil(len(labels) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps)
    for _ in epochs:
        for batch in torch.randperm(len(labels), generator=random).chunk(steps):
            logits = model(moved(images[batch], random))
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(logits, labels[batch]))
            optimizer.step()
            schedule.step()
    return model


def moved(images: Tensor, random: torch.Generator) -> Tensor:
    """Images [n, 8, 8], each shifted, turned and scaled a little, in its own way."""
    n = len(images)
    x, y, angle, scale = torch.rand(4, n, generator=random).mul(2).sub(1)
    x, y = SHIFT * x * (2 / SIDE), SHIFT * y * (2 / SIDE)  # in the grid's unit, half a side
    scale = 1 + SCALE * scale
    cos, sin = (TURN * angle).cos() * scale, (TURN * angle).sin() * scale
    maps = torch.stack([cos, -sin, x, sin, cos, y], 1).view(n, 2, 3)
    grid = F.affine_grid(maps, [n, 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def initial(random: torch.Generator) -> nn.Module:
    """The classifier to begin with: norms 1, biases 0, matrices keep the variance of what they are
    given, those that add to the residual stream share it between the blocks."""
    model: nn.Module = Classifier()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            adds = BLOCKS if name.endswith(("out.weight", "down.weight")) else 1
            noise = torch.randn(weight.shape, generator=random)
            weight.data = noise / (weight.shape[-1] * adds) ** 0.5
        elif name.endswith("bias"):
            weight.data.zero_()
    return model


@contextmanager
def _reproducible() -> Iterator[None]:
    """THREADS threads, deterministic kernels, gradients; then what was before."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def write_images(folder: Path, count: int = 20) -> None:
    """Some of the held-out digits as PNG files, `<what it shows>-<number>.png`, 64 x 64 pixels."""
    _, _, images, labels = digits()
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images[:count], labels.tolist(), strict=False)):
        gray = Image.fromarray((image * 255).round().to(torch.uint8).numpy())
        gray = gray.resize((8 * SIDE, 8 * SIDE), Image.Resampling.NEAREST)
        gray.save(folder / f"{label}-{number}.png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="to write to")
    write_images(parser.parse_args(arguments).images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
