"""Metadata never decides over pixels: what a picture says of itself is read, or passed over."""

from __future__ import annotations

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
from PIL.PngImagePlugin import PngInfo

from tests.support.triton_stub import load_model
from tests.unit.test_classify_decoder import NOISE, ZEROS, chunk, encoded

COLOR = Image.merge("RGB", (NOISE, NOISE.transpose(Image.Transpose.ROTATE_180), NOISE))
MIB = 1 << 20
PICTURES = {
    "JPEG": encoded(COLOR, "JPEG", quality=95),
    "JPEG gray": encoded(NOISE, "JPEG", quality=95),
    "JPEG for print": encoded(COLOR.convert("CMYK"), "JPEG", quality=95),
    "PNG": encoded(COLOR),
    "PNG palette": encoded(COLOR.quantize(16), transparency=3),
    "PNG 16 bits": encoded(Image.fromarray(np.asarray(NOISE).astype(np.uint16) * 257)),
}


@pytest.fixture(scope="module")
def module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        yield load_model("classify_decoder", patch)


def exif(orientation: object = 6, **tags: object) -> bytes:
    made = Image.Exif()
    made[0x112] = orientation
    for name, value in tags.items():
        made[int(name[1:], 16)] = value
    return bytes(made.tobytes())


def raw_exif(order: str, kind: int, count: int, value: bytes, tag: int = 0x11A) -> bytes:
    """Orientation 6, and one tag that is hand-made: its value may lie outside the file."""
    mark, zero = (b"II*\x00", "<") if order == "II" else (b"MM\x00*", ">")
    entries = struct.pack(f"{zero}HHIHH", 0x112, 3, 1, 6, 0)
    entries += struct.pack(f"{zero}HHI", tag, kind, count) + value[:4].ljust(4, b"\x00")
    head = mark + struct.pack(f"{zero}IH", 8, 2)
    return b"Exif\x00\x00" + head + entries + bytes(4)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def with_chunks(png: bytes, *chunks: bytes, before: bytes = b"IDAT") -> bytes:
    at = png.index(before) - 4
    return png[:at] + b"".join(chunks) + png[at:]


def alone(module: ModuleType, data: bytes, orientation: int = 1) -> np.ndarray[Any, Any]:
    """The pixels of a picture without metadata, turned by Pillow's own hand."""
    if orientation != 1:
        image = Image.open(BytesIO(data))
        image.load()
        marked = Image.Exif()
        marked[0x112] = orientation
        image.info["exif"] = marked.tobytes()
        image._exif = None  # type: ignore[attr-defined]
        return np.asarray(module._pixels(ImageOps.exif_transpose(image)))
    return np.asarray(module.decode([data])[0])


def assert_decoded(module: ModuleType, data: bytes, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(module.decode([data])[0], expected, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", PICTURES)
def test_turned_as_pillow_turns(module: ModuleType, name: str, orientation: int) -> None:
    data, said = PICTURES[name], exif(orientation)
    if name.startswith("JPEG"):
        turned = with_segments(data, segment(0xE1, said))
    else:
        turned = with_chunks(data, chunk(b"eXIf", said[6:]))
    assert_decoded(module, turned, alone(module, data, orientation))


def resolution(kind: int, numerator: int, denominator: int) -> bytes:
    """An XResolution of that kind (5 unsigned, 10 signed), behind the tags."""
    tags = raw_exif("II", kind, 1, struct.pack("<I", 38))
    return tags + struct.pack("<ii", numerator, denominator)


RESOLUTIONS = {
    "minus one of nothing": resolution(10, -1, 0),
    "minus one of nothing, unsigned": resolution(5, -1, 0),
    "nothing of nothing": resolution(5, 0, 0),
    "one of minus one": resolution(10, 1, -1),
    "a text for a number": raw_exif("MM", 2, 4, b"inch", tag=0x128),
    "words": exif(x131="\u00e9" * 50, x10E="a" * 60_000),
}


@pytest.mark.parametrize("name", RESOLUTIONS)
def test_a_resolution_that_is_none(module: ModuleType, name: str) -> None:
    data = PICTURES["JPEG"]
    turned = with_segments(data, segment(0xE1, RESOLUTIONS[name]))
    assert_decoded(module, turned, alone(module, data, 6))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    order=st.sampled_from(["II", "MM"]),
    kind=st.integers(0, 14),
    count=st.sampled_from([0, 1, 2, 100, 2**31, 2**32 - 1]),
    value=st.binary(min_size=4, max_size=4),
    tag=st.sampled_from([0x11A, 0x128, 0x8769, 0x8825, 0x927C, 0x2BC, 0x10E, 0x132]),
    png=st.booleans(),
)
def test_any_tag_beside_the_orientation(
    module: ModuleType, order: str, kind: int, count: int, value: bytes, tag: int, png: bool
) -> None:
    said = raw_exif(order, kind, count, value, tag)
    data = PICTURES["PNG" if png else "JPEG"]
    if png:
        turned = with_chunks(data, chunk(b"eXIf", said[6:]))
    else:
        turned = with_segments(data, segment(0xE1, said))
    assert_decoded(module, turned, alone(module, data, 6))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["JPEG", "JPEG gray", "JPEG for print"]),
    parts=st.lists(
        st.tuples(
            st.sampled_from([0xE1, 0xE2, 0xE3, 0xEC, 0xED, 0xEF, 0xFE]),
            st.sampled_from([b"", b"Exif\x00\x00", b"ICC_PROFILE\x00", b"MPF\x00",
                             b"Photoshop 3.0\x00", b"http://ns.adobe.com/xap/1.0/\x00"]),
            st.binary(max_size=200),
        ),
        max_size=4,
    ),
)  # fmt: skip
def test_any_segment_of_a_jpeg(
    module: ModuleType, name: str, parts: list[tuple[int, bytes, bytes]]
) -> None:
    data = PICTURES[name]
    dressed = with_segments(data, *(segment(m, title + content) for m, title, content in parts))
    assert_decoded(module, dressed, alone(module, data))


def png_parts() -> st.SearchStrategy[bytes]:
    kinds = b"tEXt zTXt iTXt iCCP pHYs tIME gAMA cHRM eXIf sRGB vpAg".split()
    return st.builds(
        lambda kind, title, content, pack: chunk(
            kind, title + (pack(content) if pack else content)
        ),
        st.sampled_from(kinds),
        st.sampled_from([b"", b"a\x00", b"a\x00\x00", b"XML:com.adobe.xmp\x00\x01\x00\x00\x00"]),
        st.binary(max_size=200),
        st.sampled_from([zlib.compress, None]),
    )


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["PNG", "PNG palette", "PNG 16 bits"]),
    parts=st.lists(png_parts(), max_size=4),
    before=st.sampled_from([b"IDAT", b"IEND"]),
)
def test_any_chunk_of_a_png(
    module: ModuleType, name: str, parts: list[bytes], before: bytes
) -> None:
    data = PICTURES[name]
    assert_decoded(module, with_chunks(data, *parts, before=before), alone(module, data))


@pytest.mark.parametrize("content", [bytes(2 * MIB), ZEROS], ids=["2 MiB", "100 MB"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_texts_and_profiles_of_any_size(
    module: ModuleType, kind: bytes, content: bytes, before: bytes
) -> None:
    start = b"a\x00\x01\x00\x00\x00" if kind == b"iTXt" else b"a\x00\x00"
    packed = chunk(kind, start + zlib.compress(content, 9))
    data = PICTURES["PNG"]
    assert_decoded(module, with_chunks(data, packed, before=before), alone(module, data))


def test_many_texts(module: ModuleType) -> None:
    """More than the 64 MiB that Pillow allows them together."""
    texts = PngInfo()
    for number in range(80):
        texts.add_text(str(number), "x" * (MIB - 1), zip=True)
    assert_decoded(module, encoded(COLOR, pnginfo=texts), alone(module, PICTURES["PNG"]))


def test_more_bits_than_are_read_are_the_reason(module: ModuleType) -> None:
    data = bytearray(PICTURES["JPEG"])
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(module.ImageError, match="a JPEG of 12 bits a color; the limit is 8"):
        module.decode([bytes(data)])
