"""The ensemble `classify`: pictures of held-out digits, and a request with some."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image

from tests.support.calls import Array, Client
from tests.support.examples import digits

DEFAULT_K, CLASSES = 3, 10


def encoded(image: Array, format: str, **options: int) -> bytes:
    """A digit, float32 [8, 8] from 0 to 1, as a file of 64 x 64 pixels."""
    gray = Image.fromarray((image * 255).round().astype(np.uint8))
    file = BytesIO()
    gray.resize((64, 64), Image.Resampling.NEAREST).save(file, format, **options)
    return file.getvalue()


@cache
def held_out() -> tuple[list[bytes], list[bytes]]:
    """Every held-out digit as a file, every second one a JPEG; and its label."""
    _, _, images, labels = digits.digits()
    formats = [("PNG", {}), ("JPEG", {"quality": 90})]
    files = [
        encoded(image, kind, **options)
        for image, (kind, options) in zip(images.numpy(), formats * len(images), strict=False)
    ]
    return files, [b"%d" % label for label in labels.tolist()]


def classify(
    client: Client, images: Sequence[bytes], top_k: int | Sequence[int] | None = None
) -> tuple[Array, Array]:
    """LABEL BYTES [images, k] and SCORE float32 [images, k]."""
    inputs = {"IMAGE": np.array([[image] for image in images], np.object_)}
    if top_k is not None:
        inputs["TOP_K"] = np.broadcast_to(np.int32(top_k), len(images))[:, None].copy()
    label, score = (client.ask("classify", name, **inputs) for name in ("LABEL", "SCORE"))
    return label, score
