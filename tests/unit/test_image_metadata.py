"""Metadata never decides over pixels: what a picture says of itself is read, or passed over."""

import struct
import zlib
from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.support.images import NOISE, ZEROS, chunk, encoded
from tests.support.triton_stub import load_model

COLOR = Image.merge("RGB", (NOISE, NOISE.transpose(Image.Transpose.ROTATE_180), NOISE))
ENDS = b"IDAT", b"IEND"
PICTURES = {
    "JPEG": encoded(COLOR, "JPEG", quality=95),
    "JPEG for print": encoded(COLOR.convert("CMYK"), "JPEG", quality=95),
    "PNG": encoded(COLOR),
    "PNG palette": encoded(COLOR.quantize(16), transparency=3),
}


@pytest.fixture(scope="module")
def module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        yield load_model("classify_decoder", patch)


def exif(
    orientation: int,
    order: str = "II",
    tag: int = 0x128,
    kind: int = 3,
    count: int = 1,
    value: bytes = bytes(4),
) -> bytes:
    """An orientation, and one tag that is hand-made: its value may lie outside the file."""
    mark, zero = (b"II*\x00", "<") if order == "II" else (b"MM\x00*", ">")
    entries = struct.pack(f"{zero}HHIHH", 0x112, 3, 1, orientation, 0)
    entries += struct.pack(f"{zero}HHI", tag, kind, count) + value
    head = mark + struct.pack(f"{zero}IH", 8, 2)
    return b"Exif\x00\x00" + head + entries + bytes(4)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def beside(data: bytes, *parts: bytes, before: bytes = b"IDAT") -> bytes:
    """A picture with these segments or chunks more."""
    at = 2 if data.startswith(b"\xff\xd8") else data.index(before) - 4
    return data[:at] + b"".join(parts) + data[at:]


def alone(module: ModuleType, data: bytes, orientation: int = 1) -> np.ndarray[Any, Any]:
    """The pixels of a picture without metadata, turned by Pillow's own hand."""
    image = Image.open(BytesIO(data))
    image.load()
    image.getexif()[0x112] = orientation
    return np.asarray(module._pixels(ImageOps.exif_transpose(image)))


def assert_decoded(module: ModuleType, data: bytes, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(module.decode([data])[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", PICTURES)
def test_turned_as_pillow_turns(module: ModuleType, name: str) -> None:
    data = PICTURES[name]
    for orientation in range(1, 9):
        turned = with_exif(data, exif(orientation))
        assert_decoded(module, turned, alone(module, data, orientation))


def with_exif(data: bytes, said: bytes) -> bytes:
    if data.startswith(b"\xff\xd8"):
        return beside(data, segment(0xE1, said))
    return beside(data, chunk(b"eXIf", said[6:]))


fuzz = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@fuzz
@given(
    order=st.sampled_from(["II", "MM"]),
    kind=st.integers(0, 14),
    count=st.sampled_from([0, 1, 2, 100, 2**31, 2**32 - 1]),
    value=st.binary(min_size=4, max_size=4),
    tag=st.sampled_from([0x11A, 0x128, 0x8769, 0x8825, 0x927C, 0x2BC, 0x10E, 0x132]),
    name=st.sampled_from(["PNG", "JPEG"]),
)
def test_any_tag_beside_the_orientation(
    module: ModuleType, order: str, kind: int, count: int, value: bytes, tag: int, name: str
) -> None:
    data = PICTURES[name]
    dressed = with_exif(data, exif(6, order, tag, kind, count, value))
    assert_decoded(module, dressed, alone(module, data, 6))


SEGMENTS = st.builds(
    lambda marker, title, content: segment(marker, title + content),
    st.sampled_from([0xE1, 0xE2, 0xE3, 0xEC, 0xED, 0xEF, 0xFE]),
    st.sampled_from([b"", b"Exif\0\0", b"ICC_PROFILE\0", b"MPF\0", b"Photoshop 3.0\0"]),
    st.binary(max_size=200),
)
CHUNKS = st.builds(
    lambda kind, title, content, pack: chunk(kind, title + (pack(content) if pack else content)),
    st.sampled_from(b"tEXt zTXt iTXt iCCP pHYs tIME gAMA cHRM eXIf sRGB vpAg".split()),
    st.sampled_from([b"", b"a\0", b"a\0\0", b"XML:com.adobe.xmp\0\1\0\0\0"]),
    st.binary(max_size=200),
    st.sampled_from([zlib.compress, None]),
)


@pytest.mark.parametrize("name", PICTURES)
@fuzz
@given(data=st.data())
def test_any_parts_beside_the_pixels(module: ModuleType, name: str, data: st.DataObject) -> None:
    whole = PICTURES[name]
    kinds = SEGMENTS if name.startswith("JPEG") else CHUNKS
    parts, before = data.draw(st.lists(kinds, max_size=4)), data.draw(st.sampled_from(ENDS))
    dressed = beside(whole, *parts, before=before)
    assert_decoded(module, dressed, alone(module, whole))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_texts_and_profiles_of_any_size(module: ModuleType, kind: bytes) -> None:
    start = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    packed = chunk(kind, start + zlib.compress(ZEROS, 9))
    data = PICTURES["PNG"]
    for before in ENDS:
        dressed = beside(data, packed, before=before)
        assert_decoded(module, dressed, alone(module, data))


def test_more_bits_than_are_read_are_the_reason(module: ModuleType) -> None:
    data = bytearray(PICTURES["JPEG"])
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(
        module.pictures.ImageError, match="a JPEG of 12 bits a color; the limit is 8"
    ):
        module.decode([bytes(data)])
