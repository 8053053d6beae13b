"""The classify client against a server made of a function."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from clients import classify as client
from clients import connection

REFUSAL = "[request id: <id_unknown>] IMAGE[0] is empty."


class FakeServer:
    """Both the module and the client: an image is the label that it shows; k of them come back."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.reachable = True

    def InferenceServerClient(self, url: str) -> "FakeServer":  # noqa: N802
        self.urls.append(url)
        return self

    def InferInput(self, name: str, shape: list[int], dtype: str) -> SimpleNamespace:  # noqa: N802
        assert (name, shape, dtype) in (("IMAGE", [1, 1], "BYTES"), ("TOP_K", [1, 1], "INT32"))
        tensor = SimpleNamespace()
        tensor.set_data_from_numpy = lambda data: tensor.__dict__.update(value=data.item())
        return tensor

    def infer(self, model: str, inputs: list[SimpleNamespace]) -> SimpleNamespace:
        assert model == "classify"
        if not self.reachable:
            raise ConnectionRefusedError
        image, k = (tensor.value for tensor in inputs)
        if not image:
            raise InferenceServerException(REFUSAL, "400")
        outputs: dict[str, Any] = {
            "LABEL": np.array([[image + b"%d" % n for n in range(k)]], np.object_),
            "SCORE": np.array([[0.5**n for n in range(k)]], np.float32),
        }
        return SimpleNamespace(as_numpy=outputs.__getitem__)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    for protocol in ("grpc", "http"):
        monkeypatch.setitem(connection.MODULES, protocol, fake)
    for name in ("HOST", "GRPC_PORT", "HTTP_PORT"):
        monkeypatch.delenv(name, raising=False)
    return fake


def files(folder: Path, count: int) -> list[Path]:
    """Each holds its own number."""
    paths = [folder / f"{n}.png" for n in range(count)]
    for n, path in enumerate(paths):
        path.write_bytes(b"%d:" % n)
    return paths


@pytest.mark.usefixtures("server")
def test_answers_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    answers = list(client.classify(files(tmp_path, 30), top_k=2, concurrency=8))
    assert [answer.best for answer in answers] == [
        [(f"{n}:0", 1.0), (f"{n}:1", 0.5)] for n in range(30)
    ]


def test_addresses_follow_the_protocol(server: FakeServer, tmp_path: Path) -> None:
    one = files(tmp_path, 1)
    for more in ({}, {"protocol": "http"}, {"url": "elsewhere:1"}):
        list(client.classify(one, concurrency=1, **more))
    assert server.urls == ["127.0.0.1:8001", "127.0.0.1:8000", "elsewhere:1"]


@pytest.mark.usefixtures("server")
def test_what_is_refused_takes_a_line_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, empty, last = files(tmp_path, 3)
    empty.write_bytes(b"")
    missing = tmp_path / "missing.png"
    assert client.main([*map(str, (first, empty, missing, last)), "--top-k", "1"]) == 1
    shown = capsys.readouterr()
    assert "0:0" in shown.out
    assert "2:0" in shown.out
    assert shown.err.splitlines() == [
        f"classify: {empty}: IMAGE[0] is empty.",
        f"classify: {missing}: No such file or directory",
    ]


def test_no_server(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.reachable = False
    assert client.main([str(files(tmp_path, 1)[0])]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "the server at 127.0.0.1:8001 cannot be reached" in shown.err


@pytest.mark.usefixtures("server")
def test_many_files_show_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main([str(path) for path in files(tmp_path, 9)]) == 0
    shown = capsys.readouterr()
    assert "classifying" in shown.err
    assert "8:2" in shown.out
    assert "0.250" in shown.out
