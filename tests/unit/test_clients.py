"""The embed client against a server made of a function."""

import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from clients import connection
from clients import embed as client


class FakeServer:
    """Both the module and the client: a vector that says which text it is of."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.batches: list[list[bytes]] = []
        self.error: Exception | None = None

    def InferenceServerClient(self, url: str) -> "FakeServer":  # noqa: N802
        self.urls.append(url)
        return self

    def InferInput(self, name: str, shape: list[int], dtype: str) -> SimpleNamespace:  # noqa: N802
        assert (name, dtype) == ("TEXT", "BYTES")
        tensor = SimpleNamespace()
        tensor.set_data_from_numpy = lambda data: tensor.__dict__.update(data=data)
        return tensor

    def infer(self, model: str, inputs: list[SimpleNamespace]) -> SimpleNamespace:
        assert model == "embed"
        texts = inputs[0].data[:, 0].tolist()
        self.batches.append(texts)
        if self.error and b"bad" in texts:
            raise self.error
        vectors = np.zeros((len(texts), client.DIM), np.float32)
        vectors[np.arange(len(texts)), [int(text) % client.DIM for text in texts]] = 1
        return SimpleNamespace(as_numpy=lambda _: vectors)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    for protocol in ("grpc", "http"):
        monkeypatch.setitem(connection.MODULES, protocol, fake)
    for name in ("HOST", "GRPC_PORT", "HTTP_PORT"):
        monkeypatch.delenv(name, raising=False)
    return fake


NUMBERS = [str(number) for number in range(101)]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_vectors_come_in_the_order_of_the_texts(server: FakeServer, concurrency: int) -> None:
    vectors = client.embed(NUMBERS, batch_size=7, concurrency=concurrency)
    assert vectors.shape == (101, client.DIM)
    assert vectors.dtype == np.float32
    assert vectors.argmax(axis=1).tolist() == list(range(101))
    assert sorted(map(len, server.batches)) == [3] + [7] * 14


@pytest.mark.usefixtures("server")
def test_no_texts() -> None:
    assert client.embed([]).shape == (0, client.DIM)


def test_addresses_follow_the_environment(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.embed(["1"], concurrency=1)
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("HTTP_PORT", "9000")
    client.embed(["1"], protocol="http", concurrency=1)
    client.embed(["1"], url="elsewhere:1", concurrency=1)
    assert server.urls == ["127.0.0.1:8001", "127.0.0.1:9000", "elsewhere:1"]


def test_requests_are_in_flight_together(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3, timeout=10)
    infer = server.infer
    monkeypatch.setattr(server, "infer", lambda *args: (together.wait(), infer(*args))[1])
    assert client.embed(NUMBERS[:3], batch_size=1, concurrency=3).shape == (3, client.DIM)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InferenceServerException("TEXT[0] is odd.", "400"), "texts 3 to 4: TEXT[0] is odd."),
        (
            InferenceServerException("[request id: <id_unknown>] no such model", "400"),
            "texts 3 to 4: no such model",
        ),
        (InferenceServerException("a long story", "StatusCode.UNAVAILABLE"), "is it running"),
        (ConnectionRefusedError(), "the server at 127.0.0.1:8001 cannot be reached"),
    ],
)
def test_errors_are_one_sentence(server: FakeServer, error: Exception, sentence: str) -> None:
    server.error = error
    with pytest.raises(client.EmbedError) as raised:
        client.embed(["0", "1", "bad", "3", "4"], batch_size=2)
    assert sentence in str(raised.value)


def test_an_error_ends_the_command(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.error = InferenceServerException("TEXT[0] is odd.", "400")
    assert client.main(["bad"]) == 1
    assert capsys.readouterr().err == "embed: TEXT[0] is odd.\n"


@pytest.mark.usefixtures("server")
def test_few_texts_make_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(["1", "2", "385"]) == 0
    shown = capsys.readouterr()
    assert "1.00" in shown.out
    assert "0.00" in shown.out
    assert shown.err == ""


@pytest.mark.usefixtures("server")
def test_many_texts_make_json_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("\n\n".join(NUMBERS) + "\r\n \n")
    assert client.main(["--file", str(file)]) == 0
    shown = capsys.readouterr()
    vectors = np.array([json.loads(line) for line in shown.out.splitlines()])
    assert vectors.argmax(axis=1).tolist() == list(range(101))
    assert "embedding" in shown.err


@pytest.mark.usefixtures("server")
def test_standard_input_to_npy(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"5\n6")))
    assert client.main(["--file", "-", "--output", "npy"]) == 0
    vectors = np.load(io.BytesIO(capsysbinary.readouterr().out))
    assert vectors.argmax(axis=1).tolist() == [5, 6]


def test_bytes_that_are_not_utf8_reach_the_server(server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="xff"):  # the fake server's int()
        client.main(["--file", str(file)])
    assert server.batches == [[b"\xff"]]


@pytest.mark.usefixtures("server")
def test_a_missing_file_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(["--file", "/no/such/file"]) == 1
    assert "/no/such/file" in capsys.readouterr().err
