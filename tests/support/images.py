"""Pictures in all the formats that classify_decoder takes, and the parts to make odd ones of."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *more: bytes, bits: int = 8, color: int = 0) -> bytes:
    """Hand-made: `rows` is what its zlib stream holds, `more` are chunks before it."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows, 9))]
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, chunk(b"IEND", b"")])


def squares() -> Image.Image:
    """32 x 32: white, black in the upper half, gray 128 below."""
    gray = np.full((32, 32), 128, np.uint8)
    gray[:16, :16], gray[:16, 16:] = 255, 0
    return Image.fromarray(gray)


SQUARES = np.repeat([[1, 0], [128 / 255, 128 / 255]], 4, axis=0).repeat(4, axis=1)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8))
EXIF_TURNED = Image.Exif()
EXIF_TURNED[0x112] = 6  # taken with the camera on its side: turn it clockwise to show it


def half_transparent() -> Image.Image:
    """White everywhere; the alpha is `squares`."""
    image = Image.new("LA", (32, 32), (255, 255))
    image.putalpha(squares())
    return image


GOOD = {
    "gray": encoded(squares()),
    "gray and alpha": encoded(squares().convert("LA")),
    "color": encoded(squares().convert("RGB")),
    "16 bits": encoded(Image.fromarray(np.asarray(squares()).astype(np.uint16) * 257)),
    "half transparent": encoded(half_transparent()),
    "a palette's white is transparent": encoded(Image.new("P", (9, 9), 255), transparency=255),
    "JPEG for print": encoded(squares().convert("CMYK"), "JPEG", quality=95),
    "JPEG progressive": encoded(squares(), "JPEG", quality=95, progressive=True),
    "JPEG of a phone, with a second picture": encoded(
        squares().convert("RGB"), "MPO", save_all=True, append_images=[NOISE.convert("RGB")]
    ),
    "JPEG turned": encoded(squares().transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95,
                           exif=EXIF_TURNED),
    "PNG turned": encoded(squares().transpose(Image.Transpose.ROTATE_90), exif=EXIF_TURNED),
}  # fmt: skip

ZEROS = bytes(100_000_000)
