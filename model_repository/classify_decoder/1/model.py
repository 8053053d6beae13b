"""Image files to pixels: the first step of the ensemble `classify`.

The digits that the classifier learned are bright on a dark ground, 8 x 8, each pixel the mean over
a block of a larger scan; so that is what an image becomes here.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from python_mp.steps import answering, pictures

SIDE = 8
BLACK = (0, 0, 0, 255)


def decode(images: Iterable[bytes]) -> np.ndarray:
    """JPEG or PNG files as brightness float32 [B, 8, 8], 0 to 1.

    Transparent means black. Raises ImageError for what is empty, too large, animated or damaged.
    """
    named = ((f"IMAGE[{index}]", image) for index, image in enumerate(images))
    return np.stack([pictures.read(name, image, _pixels) for name, image in named])


def _pixels(image: Image.Image) -> np.ndarray:
    """Gray, averaged down: float32 [8, 8]."""
    if image.mode.startswith("I"):  # 16 bits, which a conversion to 8 would clip
        gray, white = Image.fromarray(np.asarray(image, np.float32)), 65535
    elif image.has_transparency_data:
        small = _shrunk(image.convert("RGBA"))
        gray, white = Image.alpha_composite(Image.new("RGBA", small.size, BLACK), small), 255
        gray = gray.convert("L")
    else:
        gray, white = image.convert("L"), 255
    return np.asarray(_shrunk(gray), np.float32) / white


def _shrunk(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, _tensors, pictures.ImageError)


def _tensors(request: Any) -> list[Any]:
    return [pb_utils.Tensor("PIXELS", decode(request.inputs()[0].as_numpy().ravel()))]
