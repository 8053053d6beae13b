"""The clients against a server made of a function: order, addresses, patience, errors.

What they print is tested with a real server, in tests/triton.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

from clients import classify, connection, embed
from clients.at_once import Server

DIM = 384
NUMBERS = [str(number) for number in range(101)]


class FakeServer:
    """Both the module and the client: a vector, or labels, that say which text or file it is."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.batches: list[list[bytes]] = []
        self.error: Exception | None = None
        self.asked: dict[str, Any] = {}

    def InferenceServerClient(self, url: str) -> FakeServer:  # noqa: N802
        self.urls.append(url)
        return self

    def InferInput(self, name: str, shape: list[int], dtype: str) -> SimpleNamespace:  # noqa: N802
        tensor = SimpleNamespace(name=name)
        tensor.set_data_from_numpy = lambda data: tensor.__dict__.update(data=data)
        return tensor

    def infer(self, model: str, inputs: list[SimpleNamespace]) -> SimpleNamespace:
        said = inputs[0].data[:, 0].tolist()
        self.batches.append(said)
        self.asked = {each.name: each.data for each in inputs[1:]} | {"model": model}
        if self.error and b"bad" in said:
            raise self.error
        if model == "classify":
            outputs: dict[str, Any] = {"LABEL": np.array([said]), "SCORE": np.ones((1, 1))}
            return SimpleNamespace(as_numpy=outputs.__getitem__)
        vectors = np.zeros((len(said), DIM), np.float32)
        vectors[np.arange(len(said)), [int(text) % DIM for text in said]] = 1
        return SimpleNamespace(as_numpy=lambda _: vectors)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    for protocol in ("grpc", "http"):
        monkeypatch.setitem(connection.MODULES, protocol, fake)
    for name in ("HOST", "GRPC_PORT", "HTTP_PORT"):
        monkeypatch.delenv(name, raising=False)
    return fake


def test_answers_come_in_order(server: FakeServer, tmp_path: Path) -> None:
    vectors = embed.embed(NUMBERS, batch_size=7, concurrency=8)
    assert (vectors.shape, vectors.dtype) == ((101, DIM), np.float32)
    assert vectors.argmax(axis=1).tolist() == list(range(101))
    assert sorted(map(len, server.batches)) == [3] + [7] * 14
    assert len(embed.embed([])) == 0
    files = [tmp_path / number for number in NUMBERS]
    for file in files:
        file.write_text(file.name)
    *good, missing = classify.classify([*files, tmp_path / "missing"], server=Server(concurrency=8))
    assert [answer.result for answer in good] == [[(number, 1.0)] for number in NUMBERS]
    assert missing.error == "No such file or directory"


def test_wishes_go_with_each_text(server: FakeServer) -> None:
    embed.embed(["1", "2"], wish=embed.Wish("mine", "query", 5))
    assert server.asked.pop("model") == "mine"
    assert server.asked.pop("PROMPT").tolist() == [[b"query"]] * 2
    widths = server.asked.pop("DIMENSIONS")
    assert (widths.tolist(), widths.dtype, server.asked) == ([[5], [5]], np.int32, {})


@pytest.mark.parametrize("kind", [np.float32, np.int8, np.uint8])
def test_similarities_are_of_what_a_format_stands_for(kind: type[np.generic]) -> None:
    """Of packed bits, each is a value of 1 or -1."""
    rows = np.array([[3, 255], [3, 255], [252, 0]], np.int16)
    vectors = rows.astype(np.uint8) if kind is np.uint8 else (rows - 128).astype(kind)
    columns = embed.similarity_table("abc", vectors).columns
    cells = [str(next(iter(column.cells))) for column in columns]
    assert cells[2:4] == ["1.00", "1.00"]
    assert float(cells[4]) < 0


def test_addresses_and_environment(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    embed.embed(["1"], concurrency=1)
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("HTTP_PORT", "9000")
    embed.embed(["1"], protocol="http", concurrency=1)
    embed.embed(["1"], url="elsewhere:1", concurrency=1)
    assert server.urls == ["127.0.0.1:8001", "127.0.0.1:9000", "elsewhere:1"]


def test_errors_are_one_sentence(server: FakeServer) -> None:
    odd = "[request id: <id_unknown>] TEXT[0] is odd."
    for server.error, sentence in (
        (InferenceServerException(odd, "400"), "texts 3 to 4: TEXT[0] is odd."),
        (InferenceServerException("a long story", "StatusCode.UNAVAILABLE"), "is it running"),
        (ConnectionRefusedError(), "the server at 127.0.0.1:8001 cannot be reached"),
    ):
        with pytest.raises(embed.EmbedError) as raised:
            embed.embed(["0", "1", "bad", "3", "4"], batch_size=2)
        assert sentence in str(raised.value)


GONE = [
    InferenceServerException("down", "StatusCode.UNAVAILABLE"),
    InferenceServerException("nobody there", "502"),
    InferenceServerException("full", "503"),
    HTTPConnectionClosed("it closed"),
    ConnectionResetError(),
]
FINAL = [
    InferenceServerException("wrong shape", "StatusCode.INVALID_ARGUMENT"),
    InferenceServerException("it killed its ranks", "StatusCode.INTERNAL"),
    ValueError("a bug"),
]


def calls(times: int, error: Exception) -> int:
    """How often a call is made that fails `times` times before it succeeds."""
    made: list[int] = []

    @connection.patient
    def infer() -> None:
        made.append(1)
        if len(made) <= times:
            raise error

    infer()
    return len(made)


def test_a_lost_request_is_made_again_for_a_while_and_a_verdict_is_final() -> None:
    for error in GONE:
        assert calls(2, error) == 3
        with pytest.raises(type(error)):
            calls(connection.ATTEMPTS, error)
    for error in FINAL:
        with pytest.raises(type(error)) as raised:
            calls(1, error)
        assert raised.value is error
