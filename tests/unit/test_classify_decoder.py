"""classify_decoder: files of all kinds in, and only pictures through."""

import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.images import GOOD, NOISE, SQUARES, ZEROS, encoded, png, squares
from tests.support.triton_stub import load_model

Array = np.ndarray[Any, Any]
WIDTH, HEIGHT = 4096, 4096


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the module sets it
    return load_model("classify_decoder", monkeypatch)


@pytest.mark.parametrize("name", GOOD)
def test_decodes_to_brightness(module: ModuleType, name: str) -> None:
    (pixels,) = module.decode([GOOD[name]])
    expected = 0 if name == "a palette's white is transparent" else SQUARES
    np.testing.assert_allclose(pixels, expected, atol=0.02)


def test_shrinks_by_the_mean_over_a_block(module: ModuleType) -> None:
    scan = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    (pixels,) = module.decode([encoded(Image.fromarray(scan))])
    blocks = scan.reshape(8, 8, 8, 8).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(pixels, blocks, atol=1 / 255)
    white = module.decode([encoded(Image.new("1", (5, 3), 1)), png(1, 1, b"\0\xff")])
    np.testing.assert_array_equal(white, np.ones((2, 8, 8)))


def test_each_of_16_bits_counts(module: ModuleType) -> None:
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) + 30_000
    (pixels,) = module.decode([encoded(Image.fromarray(ramp))])
    np.testing.assert_allclose(pixels, ramp / 65535, rtol=1e-6)


def animated() -> bytes:
    return encoded(NOISE, save_all=True, append_images=[squares()])


def many_scans() -> bytes:
    """Its last scan 200 times over; each would cost a pass over 16 million pixels."""
    data = encoded(Image.new("L", (WIDTH, HEIGHT)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 200 + data[-2:]


TOO_LARGE = "IMAGE[1] is {} pixels; the limit is 16777216 in all."
NOT_AN_IMAGE = "IMAGE[1] is not a JPEG or PNG file."
DAMAGED = "IMAGE[1] is damaged or cut short."
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "9 MB": (lambda: bytes(9_000_000), "IMAGE[1] has 9000000 bytes; the limit is 8388608."),
    "only a PNG's first bytes": (lambda: encoded(NOISE)[:8], NOT_AN_IMAGE),
    "GIF": (lambda: encoded(NOISE, "GIF"), NOT_AN_IMAGE),
    "animated": (animated, "IMAGE[1] is animated; send a single picture."),
    "huge": (lambda: png(2**31 - 1, 2**31 - 1, b""), TOO_LARGE.format("2147483647 x 2147483647")),
    "scans": (many_scans, "IMAGE[1] has more than 40 scans."),
    "rows missing": (lambda: png(64, 64, bytes(100)), DAMAGED),
    "checksum": (lambda: encoded(NOISE).replace(b"IDAT", b"IDAT\0", 1), DAMAGED),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refuses_and_names_the_index(module: ModuleType, name: str) -> None:
    make, sentence = BAD[name]
    with pytest.raises(module.pictures.ImageError) as error:
        module.decode([GOOD["gray"], make()])
    assert str(error.value) == sentence


@pytest.mark.parametrize("name", ["huge", "scans"])
def test_refused_by_header(module: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    decoded: list[Image.Image] = []
    monkeypatch.setattr(module, "_pixels", decoded.append)
    with pytest.raises(module.pictures.ImageError):
        module.decode([BAD[name][0]()])
    assert decoded == []


def test_pixels_behind_the_last_row_are_not_read(module: ModuleType) -> None:
    bomb = png(4, 4, ZEROS)
    start = time.process_time()
    np.testing.assert_array_equal(module.decode([bomb]), np.zeros((1, 8, 8)))
    middle = time.process_time()
    zlib.decompress(zlib.compress(ZEROS, 9))
    assert middle - start < (time.process_time() - middle) / 4


def test_the_largest_is_served(module: ModuleType) -> None:
    assert module.pictures.MAX_PIXELS == WIDTH * HEIGHT
    assert not module.decode([png(WIDTH, HEIGHT, bytes((WIDTH + 1) * HEIGHT))]).any()


def damaged(data: bytes) -> Iterator[bytes]:
    """Cut anywhere, and with three wrong bytes."""
    random = np.random.default_rng(0)
    yield from (data[:length] for length in range(1, len(data), len(data) // 300 + 1))
    for _ in range(100):
        wrong = np.frombuffer(data, np.uint8).copy()
        wrong[random.integers(0, len(wrong), 3)] = random.integers(0, 256, 3)
        yield wrong.tobytes()


@pytest.mark.parametrize("name", ["gray", "16 bits", "JPEG progressive", "JPEG turned"])
def test_a_damaged_file_never_raises_anything_else(module: ModuleType, name: str) -> None:
    for data in damaged(GOOD[name]):
        with suppress(module.pictures.ImageError):
            pixels = module.decode([data])
            assert ((pixels >= 0) & (pixels <= 1)).all()


def test_a_file_cut_short_is_no_picture(module: ModuleType) -> None:
    for whole in (encoded(NOISE), encoded(NOISE, "JPEG", progressive=True)):
        for length in (len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
            with pytest.raises(module.pictures.ImageError):
                module.decode([whole[:length]])
