"""Pixels as a checkpoint's image processor makes them: resized, cropped, scaled, normalised.

transformers' own would bring torch into the process, 350 MB and ten seconds. The build has compared
what this makes with what that makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..model.request import Array
from .pictures import MAX_PIXELS, ImageError


@dataclass(frozen=True)
class Processor:
    """
    Attributes:
        size: height and width to resize to, or (S,): the shorter side becomes S. None: as it is.
        resample: one of Pillow's filters, by its number.
        crop: height and width of the middle that is kept; None for all.
        scale: of the pixels' 0 to 255.
        mean, std: of each color, after scaling; none for no normalisation.
    """

    size: tuple[int, ...] | None
    resample: int
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def of(cls, said: dict[str, Any]) -> Processor:
        """From settings.json."""
        values: dict[str, Any] = {n: _frozen(value) for n, value in said.items()}
        return cls(**values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the pixels; the build has refused what gives pictures of other sizes another one."""
        height, width = self.crop or self.size or (0, 0)
        return 3, height, width

    def pixels(self, name: str, image: Image.Image) -> Array:
        """float32 [3, height, width]. Raises ImageError where one side would be far too long."""
        image = _rgb(image)
        if self.size:
            height, width = self._target(name, image)
            image = image.resize((width, height), Image.Resampling(self.resample))
        array = np.asarray(image)
        if self.crop:
            top, left = ((a - b) // 2 for a, b in zip(array.shape, self.crop, strict=False))
            array = array[top : top + self.crop[0], left : left + self.crop[1]]
        scaled = (array.astype(np.float64) * self.scale).astype(np.float32)
        if self.mean and self.std:
            scaled = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def _target(self, name: str, image: Image.Image) -> tuple[int, ...]:
        assert self.size
        if len(self.size) == 2:
            return self.size
        short, long = sorted(image.size)
        longer = int(self.size[0] * long / short)
        if self.size[0] * longer > MAX_PIXELS:
            raise ImageError(
                f"{name} is {image.width} x {image.height} pixels; its sides are too unequal."
            )
        shape = longer, self.size[0]
        return shape if image.width <= image.height else shape[::-1]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which a conversion to 8 would clip
        image = Image.fromarray((np.asarray(image, np.float32) / 257).round().astype(np.uint8))
    if image.has_transparency_data:  # Pillow warns of dropping it in one go.
        image = image.convert("RGBA")
    return image.convert("RGB")
