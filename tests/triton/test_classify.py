"""The ensemble `classify`, as clients see it: how many held-out digits it recognises, how many
labels it gives, and what it refuses."""

import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from build_scripts import digits
from server.process.installation import PROJECT
from server.process.launch import TritonServer
from tests.triton.calls import PROTOCOLS, Array, Client, in_parallel
from tests.triton.test_server import variables

pytestmark = pytest.mark.timeout(600)
STEPS = ("classify", "classify_decoder", "classify_labels")
DEFAULT_K, CLASSES = 3, 10
INVALID = {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}


def encoded(image: Array, format: str, **options: int) -> bytes:
    """A digit, float32 [8, 8] from 0 to 1, as a file of 64 x 64 pixels."""
    gray = Image.fromarray((image * 255).round().astype(np.uint8))
    file = BytesIO()
    gray.resize((64, 64), Image.Resampling.NEAREST).save(file, format, **options)
    return file.getvalue()


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


@pytest.mark.parametrize(("protocol", "size"), [("grpc", 1), ("grpc", 64), ("http", 20)])
def test_recognises_the_held_out_digits(server: TritonServer, protocol: str, size: int) -> None:
    files, expected = held_out()
    with Client(server.endpoints, protocol) as client:
        found = [
            client.ask("classify", "LABEL", IMAGE=np.array(files[at : at + size], object)[:, None])
            for at in range(0, len(files), size)
        ]
    best = np.concatenate(found)[:, 0]
    assert (best == np.array(expected, object)).mean() >= digits.LEAST_ACCURACY


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_gives_as_many_labels_as_asked_for(server: TritonServer, protocol: str) -> None:
    files, _ = held_out()
    with Client(server.endpoints, protocol) as client:
        all_labels, all_scores = classify(client, files[:5], CLASSES)
        assert all(sorted(row) == [b"%d" % n for n in range(CLASSES)] for row in all_labels)
        np.testing.assert_allclose(all_scores.sum(axis=1), 1, atol=1e-5)
        assert (np.diff(all_scores, axis=1) <= 0).all()
        for top_k in (1, 2, CLASSES, None):
            k = top_k or DEFAULT_K
            labels, scores = classify(client, files[:5], top_k)
            np.testing.assert_array_equal(labels, all_labels[:, :k])
            np.testing.assert_allclose(scores, all_scores[:, :k], atol=1e-5)


def test_every_client_gets_as_many_as_it_asked_for(server: TritonServer) -> None:
    """8 clients at once, each with a TOP_K of its own, some with none, some with bad files."""
    files, _ = held_out()
    with Client(server.endpoints) as client:
        expected, _ = classify(client, files[:40], CLASSES)

    def ask(number: int) -> None:
        with Client(server.endpoints, list(PROTOCOLS)[number % 2]) as client:
            for at in range(40 - number):
                k = (at + number) % 5 or None
                labels, _ = classify(client, files[at : at + 1 + number % 3], k)
                rows = expected[at : at + 1 + number % 3, : k or DEFAULT_K]
                np.testing.assert_array_equal(labels, rows)
                if at % 7 == 0:
                    with pytest.raises(InferenceServerException, match="not a JPEG or PNG"):
                        classify(client, [files[0], b"?"])

    in_parallel(8, ask)


def huge() -> bytes:
    """A PNG whose header says 50000 x 50000."""
    file = bytearray(held_out()[0][0])
    file[16:24] = (50_000).to_bytes(4, "big") * 2
    file[29:33] = zlib.crc32(file[12:29]).to_bytes(4, "big")
    return bytes(file)


GOOD = held_out()[0][0]
BAD = {
    "empty": ([b""], None, "IMAGE[0] is empty."),
    "second of two": ([GOOD, b"hello"], None, "IMAGE[1] is not a JPEG or PNG file."),
    "cut short": ([GOOD[:-60]], None, "IMAGE[0] is damaged or cut short."),
    "huge": ([huge()], None, "IMAGE[0] is 50000 x 50000 pixels; the limit is 16777216 in all."),
    "9 MB": ([bytes(9_000_000)], None, "IMAGE[0] has 9000000 bytes; the limit is 8388608."),
    "k 0": ([GOOD], 0, "TOP_K is 0; it must be 1 to 10."),
    "k 11": ([GOOD], 11, "TOP_K is 11; it must be 1 to 10."),
    "two ks": ([GOOD, GOOD], [1, 2], "the images of a request need the same."),
    "batch of 65": ([GOOD] * 65, None, "batch-size must be <= 64 for 'classify'"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", BAD)
def test_is_refused_in_a_sentence(server: TritonServer, case: str, protocol: str) -> None:
    images, top_k, sentence = BAD[case]
    with Client(server.endpoints, protocol) as client:
        with pytest.raises(InferenceServerException) as refused:
            classify(client, images, top_k)
        assert refused.value.status() == INVALID[protocol]
        assert sentence in refused.value.message()
        assert "Traceback" not in refused.value.message()
        assert classify(client, [GOOD])[0].shape == (1, DEFAULT_K)


def test_pixels_that_are_not_finite_are_refused(server: TritonServer) -> None:
    pixels = np.zeros((2, 8, 8), np.float32)
    with Client(server.endpoints) as client:
        assert client.ask("classifier", "LOGITS", PIXELS=pixels).shape == (2, CLASSES)
        pixels[1, 0, 0] = np.nan
        with pytest.raises(InferenceServerException, match="not finite") as refused:
            client.ask("classifier", "LOGITS", PIXELS=pixels)
        assert refused.value.status() == INVALID["grpc"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_client(server: TritonServer, tmp_path: Path, protocol: str) -> None:
    digits.write_images(tmp_path)
    files = sorted(tmp_path.iterdir())
    (tmp_path / "bad.png").write_bytes(b"hello")
    done = subprocess.run(
        [sys.executable, "-m", "clients.classify", "--top-k", "1", "--protocol", protocol]
        + [str(file) for file in (*files, tmp_path / "bad.png", tmp_path / "none.png")],
        cwd=PROJECT,
        env={**os.environ, **variables(server.endpoints), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.splitlines() if ".png" in line]
    found = {Path(row[1]).name: row[3] for row in rows}
    assert found.keys() == {file.name for file in files}
    assert sum(name[0] == label for name, label in found.items()) >= len(files) - 1
    *_, bad, missing = done.stderr.splitlines()
    assert bad.startswith(f"classify: {tmp_path}/bad.png: ")
    assert bad.endswith("IMAGE[0] is not a JPEG or PNG file.")
    assert missing == f"classify: {tmp_path}/none.png: No such file or directory"
