"""Image files to pixels: the first step of the ensemble `classify`.

The digits that the classifier learned are bright on a dark ground, 8 x 8, each pixel the mean over
a block of a larger scan; so that is what an image becomes here.
"""

from collections.abc import Iterable
from io import BytesIO
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image, ImageOps, UnidentifiedImageError

SIDE = 8
MAX_BYTES = 8 << 20
MAX_PIXELS = 1 << 24  # 4096 x 4096; decoded, 64 MiB at 4 bytes each
MAX_SCANS = 40  # a progressive JPEG has about ten; each one costs a pass over all pixels
START_OF_SCAN = b"\xff\xda"
BLACK = (0, 0, 0, 255)

Image.MAX_IMAGE_PIXELS = None  # the limit above is lower, and is an error instead of a warning


class ImageError(ValueError):
    """An image that is not served; the message names its index in the request."""


def decode(images: Iterable[bytes]) -> np.ndarray:
    """JPEG or PNG files as brightness float32 [B, 8, 8], 0 to 1.

    Transparent means black. Raises ImageError for what is empty, too large, animated or damaged.
    """
    return np.stack([_decode(f"IMAGE[{index}]", image) for index, image in enumerate(images)])


def _decode(name: str, data: bytes) -> np.ndarray:
    if not data:
        raise ImageError(f"{name} is empty.")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name} has {len(data)} bytes; the limit is {MAX_BYTES}.")
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as image:
            _check_header(name, image, data)
            return _pixels(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a JPEG or PNG file.") from None
    except Exception:  # whatever Pillow raises, it is the file's fault
        raise ImageError(f"{name} is damaged or cut short.") from None


def _check_header(name: str, image: Image.Image, data: bytes) -> None:
    """Before anything is decoded: raises ImageError for what would cost too much."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} is {width} x {height} pixels; the limit is {MAX_PIXELS} in all.")
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise ImageError(f"{name} is animated; send a single picture.")
    if image.format != "PNG" and data.count(START_OF_SCAN) > MAX_SCANS:
        raise ImageError(f"{name} has more than {MAX_SCANS} scans.")


def _pixels(image: Image.Image) -> np.ndarray:
    """Upright, gray, averaged down: float32 [8, 8]."""
    image = ImageOps.exif_transpose(image)
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
        return [self._answer(request) for request in requests]

    @staticmethod
    def _answer(request: Any) -> Any:
        try:
            pixels = decode(request.inputs()[0].as_numpy().ravel())
        except ImageError as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", pixels)])
