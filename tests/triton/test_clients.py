"""The programs in clients/, started as a user starts them."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from server.process.installation import PROJECT
from server.process.launch import TritonServer
from tests.support.calls import BOUND, PROTOCOLS, Client, plain_ranker, reference
from tests.support.command import variables
from tests.support.examples import digits


def run(
    server: TritonServer, module: str, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", f"clients.{module}", *arguments],
        cwd=PROJECT,
        env={**os.environ, **variables(server.endpoints), "COLUMNS": "200"},
        input=stdin.encode(),
        capture_output=True,
        timeout=60,
    )


def shown(server: TritonServer, module: str, *arguments: str, stdin: str = "") -> bytes:
    done = run(server, module, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def texts(count: int) -> list[str]:
    return reference().texts[:count]


def test_embed_shows_similarities(server: TritonServer) -> None:
    table = shown(server, "embed", "a cat", "a kitten", "the stock market").decode()
    rows = re.findall(r"(\d\.\d\d) +[│|] +(\d\.\d\d) +[│|] +(\d\.\d\d)", table)
    similar = np.array(rows, float)
    np.testing.assert_allclose(np.diag(similar), [1, 1, 1])
    assert similar[0, 1] > 0.5 > similar[0, 2]


def test_embed_reads_files_and_stdin(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("\n\n".join(reference().texts))
    options = ["--output", "npy", "--protocol", "http", "--batch-size", "7"]
    binary = shown(server, "embed", "--file", str(tmp_path / "texts"), *options)
    vectors = np.load(io.BytesIO(binary))
    assert reference().cosine(range(200), vectors) >= BOUND["float32"]
    first = "\n".join(reference().texts[:10])
    lines = shown(server, "embed", "--file", "-", "--output", "vectors", stdin=first).splitlines()
    np.testing.assert_allclose([json.loads(line) for line in lines], vectors[:10], atol=1e-5)
    fewer = shown(server, "embed", "--output=npy", "--dimensions=5", "--prompt=query", *texts(2))
    np.testing.assert_allclose(np.load(io.BytesIO(fewer)), vectors[:2, :5], atol=1e-5)


def test_embed_says_what_is_wrong(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("fine\ncaf\xe9\n".encode("latin-1"))
    refused = run(server, "embed", "--file", str(tmp_path / "latin"))
    unreachable = run(server, "embed", "a", "--url", "127.0.0.1:9")
    missing = run(server, "embed", "--file", str(tmp_path / "none"))
    for done, sentence in (
        (refused, "texts 1 to 2: in ensemble 'embed', TEXT[1] is not UTF-8 at byte 3."),
        (unreachable, "the server at 127.0.0.1:9 cannot be reached"),
        (missing, "No such file"),
    ):
        error = done.stderr.decode().strip().splitlines()[-1]
        assert done.returncode == 1
        assert error.startswith("embed: ")
        assert sentence in error
        assert "Traceback" not in done.stderr.decode()


def test_embed_async(server: TritonServer) -> None:
    table = shown(server, "embed_async", "a cat", "a kitten", "the stock market").decode()
    found = re.findall(r"^ *(-?\d\.\d{3})  (.+)$", table, re.MULTILINE)
    assert [text for _, text in found] == ["a cat", "a kitten", "the stock market"]
    with Client(server.endpoints) as client:
        expected = client.embed([text for _, text in found])
    np.testing.assert_allclose([float(n) for n, _ in found], expected @ expected[0], atol=1e-3)


def test_ranker(server: TritonServer) -> None:
    scores = re.findall(r"candidate \d: ([+-]\d+\.\d{4})", shown(server, "ranker", "5").decode())
    features = np.random.default_rng(0).standard_normal((5, 256), dtype=np.float32)
    np.testing.assert_allclose([float(s) for s in scores], plain_ranker(features)[:, 0], atol=1e-3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_classify(server: TritonServer, tmp_path: Path, protocol: str) -> None:
    digits.write_images(tmp_path)
    files = sorted(tmp_path.iterdir())
    (tmp_path / "bad.png").write_bytes(b"hello")
    asked = map(str, (*files, tmp_path / "bad.png", tmp_path / "none.png"))
    done = run(server, "classify", "--top-k", "1", "--protocol", protocol, *asked)
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.decode().splitlines() if ".png" in line]
    found = {Path(row[1]).name: row[3] for row in rows}
    assert found.keys() == {file.name for file in files}
    assert sum(name[0] == label for name, label in found.items()) >= len(files) - 1
    *_, bad, missing = done.stderr.decode().splitlines()
    assert bad.startswith(f"classify: {tmp_path}/bad.png: ")
    assert bad.endswith("IMAGE[0] is not a JPEG or PNG file.")
    assert missing == f"classify: {tmp_path}/none.png: No such file or directory"
