"""Pictures as clients send them, the bytes of JPEG or PNG files.

What would cost too much is refused by its header; what stands beside the pixels spoils nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

T = TypeVar("T")

MAX_BYTES = 8 << 20
MAX_PIXELS = 1 << 24  # 4096 x 4096; decoded, 64 MiB at 4 bytes each
MAX_SCANS = 40  # a progressive JPEG has about ten; each one costs a pass over all pixels
START_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", b"\xff\xda"
FRAMES = {bytes([0xFF, 0xC0 + each]) for each in range(16) if each not in (4, 8, 12)}
PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation: what makes the picture upright."""
REST = b""
SHORT = 3
EXIF = {b"eXIf": (b"", 8), b"\xff\xe1": (b"Exif\0\0", 4)}
"""In a PNG's chunk and a JPEG's segment: what it begins with, and where."""
KEPT = {REST, *(b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")} | {
    bytes([0xFF, marker]) for marker in range(0xC0, 0x100) if not 0xE1 <= marker <= 0xED
} - {b"\xff\xef", b"\xff\xfe"}
"""Of a JPEG all but application data and comments; JFIF's and Adobe's say what colors are."""

Image.MAX_IMAGE_PIXELS = None  # the limit above is lower, and is an error instead of a warning


class ImageError(ValueError):
    """A picture that is not served; the message names its index in the request."""


def read(name: str, data: bytes, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of the picture, which it is given upright.

    Raises ImageError for a file that is empty, too large, animated or damaged; `name` begins its
    sentence.
    """
    if not data:
        raise ImageError(f"{name} is empty.")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name} has {len(data)} bytes; the limit is {MAX_BYTES}.")
    try:
        return _opened(name, data, data, use)
    except ImageError:
        raise
    except Exception:  # maybe for what stands beside the pixels
        bare = _bare(data)
    try:
        return _opened(name, bare, data, use)
    except ImageError:
        raise
    except UnidentifiedImageError:
        if (bits := _jpeg_bits(data)) not in (None, 8):
            raise ImageError(f"{name} is a JPEG of {bits} bits a color; the limit is 8.") from None
        raise ImageError(f"{name} is not a JPEG or PNG file.") from None
    except Exception:  # whatever Pillow raises, it is the file's fault
        raise ImageError(f"{name} is damaged or cut short.") from None


def _opened(name: str, data: bytes, whole: bytes, use: Callable[[Image.Image], T]) -> T:
    """Of the pixels of `data`, turned as the whole file says."""
    with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as image:
        _check_header(name, image, data)
        image.load()  # of a PNG, text may follow the pixels
        orientation = _orientation(whole)
        with suppress(Exception):  # Pillow looks into XMP, too
            orientation = orientation or image.getexif().get(ORIENTATION)
        turn = TURNS.get(orientation or 1)
        return use(image if turn is None else image.transpose(turn))


def _bare(data: bytes) -> bytes:
    """The file without what says nothing of its pixels: texts, profiles, thumbnails. From where it
    makes no sense it stays as it is."""
    parts = _png_chunks(data) if data.startswith(PNG) else _jpeg_segments(data)
    return b"".join(part for kind, part in parts if kind in KEPT)


def _orientation(data: bytes) -> int | None:
    """What the file's EXIF says: Pillow gives up where another tag of it is damaged."""
    parts = _png_chunks(data) if data.startswith(PNG) else _jpeg_segments(data)
    for kind, part in parts:
        if kind in EXIF and part.startswith(*EXIF[kind]):
            start, at = EXIF[kind]
            with suppress(struct.error, KeyError):
                return _short(part[at + len(start) :], ORIENTATION)
    return None


def _short(tiff: bytes, wanted: int) -> int | None:
    """A tag of a TIFF's first directory, if it is a number of at most 16 bits."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if (tag, kind) == (wanted, SHORT):
            return int(value)
    return None


def _jpeg_bits(data: bytes) -> int | None:
    """Of a color, by the frame's header."""
    segments = _jpeg_segments(data) if data.startswith(START_OF_IMAGE) else ()
    return next((part[4] for kind, part in segments if kind in FRAMES and len(part) > 4), None)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk with its kind: length, kind, content, checksum."""
    yield REST, PNG
    at = len(PNG)
    while at + 12 <= len(data):
        length = 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at : at + length]
        at += length
    yield REST, data[at:]


def _jpeg_segments(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each segment with its marker, up to the first scan; it and all that follows is one."""
    yield REST, data[:2]
    at = 2
    while data[at : at + 1] == b"\xff" and data[at : at + 2] != START_OF_SCAN:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at : at + 2], data[at : at + length]
        at += length
    yield REST, data[at:]


def _check_header(name: str, image: Image.Image, data: bytes) -> None:
    """Before anything is decoded: raises ImageError for what would cost too much."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} is {width} x {height} pixels; the limit is {MAX_PIXELS} in all.")
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise ImageError(f"{name} is animated; send a single picture.")
    if image.format != "PNG" and data.count(START_OF_SCAN) > MAX_SCANS:
        raise ImageError(f"{name} has more than {MAX_SCANS} scans.")
