"""Orders to Triton over gRPC: against gRPC's own server, and against what is none."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.control import Control
from server.endpoints import Endpoints
from server.errors import ControlError, is_unheard
from server.token import METADATA

LATE_SECONDS = 0.3
TOKEN = "a-token"
Answer = Callable[[Any, grpc.ServicerContext], None]


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers each order as it is told, with an empty message."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.heard: list[Any] = []

    def _hear(self, request: Any, context: grpc.ServicerContext) -> None:
        assert dict(context.invocation_metadata())[METADATA] == TOKEN
        self.heard.append(request)
        self._answer(request, context)

    def RepositoryModelLoad(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._hear(request, context)
        return service_pb2.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._hear(request, context)
        return service_pb2.RepositoryModelUnloadResponse()


@contextmanager
def serving(
    answer: Answer = lambda *_: None, **options: Any
) -> Iterator[tuple[Control, Service, grpc.Server]]:
    service = Service(answer)
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    endpoints = Endpoints(grpc=server.add_insecure_port("127.0.0.1:0"))
    server.start()
    try:
        yield Control(endpoints, TOKEN, grpc=True, **options), service, server
    finally:
        server.stop(None).wait()


@contextmanager
def speaking(content: bytes, *, hangs_up: bool = True) -> Iterator[Control]:
    """Something that says this to whoever calls, whatever is said to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            line, _ = listener.accept()
            with line:
                line.sendall(content)
                if hangs_up:
                    line.shutdown(socket.SHUT_WR)
                while line.recv(1 << 16):
                    pass

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        endpoints = Endpoints(grpc=listener.getsockname()[1])
        yield Control(endpoints, TOKEN, grpc=True, patience=None if hangs_up else LATE_SECONDS)
        thread.join(10)
        assert not thread.is_alive()


def refused(control: Control) -> ControlError:
    with pytest.raises(ControlError) as caught:
        control.load("m")
    return caught.value


@pytest.mark.parametrize("size", [0, 1 << 16, 3 << 20])
def test_an_order_arrives_as_it_is(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxies the environment names."""
    for name in ("http_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    config = {"filler": "é" * (size // 2)} if size else {}
    with serving() as (control, service, _):
        control.load("Modell-ß", config)
        control.load("m")
        control.unload("m" * 1000)
    first, second, last = service.heard
    assert (first.model_name, first.repository_name) == ("Modell-ß", "")
    assert json.loads(first.parameters["config"].string_param) == config
    assert (second.model_name, dict(second.parameters)) == ("m", {})
    assert last.model_name == "m" * 1000


@pytest.mark.parametrize(
    ("code", "unheard"),
    [
        (grpc.StatusCode.INTERNAL, False),
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.CANCELLED, True),
    ],
)
@pytest.mark.parametrize("text", ["Gewichte fehlen: 50 % – sehr\tschade", "x" * 20_000, ""])
def test_its_refusal_is_told(code: grpc.StatusCode, unheard: bool, text: str) -> None:
    with serving(lambda _, context: context.abort(code, text)) as (control, *_):
        error = refused(control)
    assert not text or str(error) == text.replace("\t", " ")
    assert is_unheard(error) is unheard


@cache
def whole_answer() -> bytes:
    """What gRPC's server says to an order."""
    spoken: list[bytes] = []

    class Spy(socket.socket):
        def recv(self, *size: Any) -> bytes:
            spoken.append(super().recv(*size))
            return spoken[-1]

    with pytest.MonkeyPatch.context() as patch, serving() as (control, *_):
        patch.setattr("server.orders.socket.socket", Spy)
        control.load("m")
    return b"".join(spoken)


def test_an_answer_that_is_cut_off_anywhere() -> None:
    whole, heard = whole_answer(), []
    for size in range(0, len(whole) + 3, 3):
        with speaking(whole[:size]) as control:
            try:
                control.load("m")
                heard.append(True)
            except ControlError as error:
                heard.append(not is_unheard(error))
    assert heard == sorted(heard), "from some size on it is whole, before it is no answer"
    assert len({*heard}) == 2
    assert is_unheard(refused(control)), "nobody listens there any more"


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_what_is_not_grpc_is_no_word_on_the_model(junk: bytes, at: int) -> None:
    with speaking(whole_answer()[:at] + junk) as control, suppress(ControlError):
        control.load("m")  # nothing else comes out of it


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_who_says_nothing_of_use_is_not_waited_for(said: bytes) -> None:
    with speaking(said, hangs_up=False) as control:
        error = refused(control)
    assert error.status == 504 or is_unheard(error)
