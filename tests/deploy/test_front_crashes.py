"""What crashes or fools the embedded Triton (docs/security.md) is refused before it. At the end of
the session, tritonserver and its stubs must be the processes that they were: see conftest.py."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from unittest.mock import patch

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from tests.deploy.conftest import MODELS, Fronted
from tests.deploy.front import SECONDS, SERVICE, Answer
from tests.support import bad_json, bad_messages
from tests.support.bad_json import GENERATED, JUNK
from tests.support.bad_messages import field

GOOD = json.dumps({"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1, 1], "data": [1]}]})
HEAD = "POST /v2/models/wide/infer HTTP/1.1\r\nHost: x\r\n"
FORM = "application/x-www-form-urlencoded"
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.fixture(autouse=True)
def still_serving(both: Fronted) -> Iterator[None]:
    yield
    assert both.triton.answers(model="wide")
    assert both.front.send("POST", "/v2/models/wide/infer", GOOD.encode()).status == 200


def refused(both: Fronted, answer: Answer, status: int) -> None:
    assert answer.status == status, answer
    assert answer.error
    assert both.front.logged(answer)["upstream"] == ""


BODIES = {
    "deep JSON": (400, b"[" * 90_000 + b"]" * 90_000, ""),
    "a form": (415, b"a" * 4_000_000, f"Content-Type: {FORM}; charset=utf-8"),
    "a form in capitals": (415, b"a=b", f"Content-Type: {FORM.upper()}"),
    "a form in parts": (415, b"a=b", "Content-Type: multipart/form-data; boundary=x"),
    "a gzip bomb": (415, gzip.compress(bytes(1 << 25)), "Content-Encoding: gzip"),
    "identity": (415, GOOD.encode(), "Content-Encoding: identity"),
    "too large": (413, bytes((16 << 20) + 1), ""),
    "the largest": (413, b" " * (16 << 20), ""),
}


@pytest.mark.parametrize("body", BODIES)
def test_bodies(both: Fronted, body: str) -> None:
    status, data, header = BODIES[body]
    head = f"{HEAD}Content-Length: {len(data)}\r\n{header}".rstrip() + "\r\n\r\n"
    refused(both, both.front.raw(head.encode() + data), status)


@pytest.mark.parametrize("path", ["/v2/models/wide/infer", "/v2/repository/index", "/v2", "/none"])
def test_chunks(both: Fronted, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    refused(both, both.front.raw(head + b"1\r\nx\r\n" * 700_000 + b"0\r\n\r\n"), 411)


HEADERS = {
    "two lengths of the body": ("Content-Length: 5\r\n", (400,)),
    "both kinds of length": ("Transfer-Encoding: chunked\r\n", (400, 411)),
    "an encoding unknown": ("Transfer-Encoding: gzip\r\n", (400, 411, 501)),
    "a large header": ("X: " + "a" * 9000 + "\r\n", (431,)),
    "many headers": ("X: a\r\n" * 10_000, (431,)),
    "space before the colon": ("Transfer-Encoding : chunked\r\n", (400, 411)),
    "a NUL": ("X: a\0b\r\n", (400,)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(both: Fronted, case: str) -> None:
    """Not one of them is a way to show Triton another request than the one that is checked."""
    lines, statuses = HEADERS[case]
    answer = both.front.raw(f"{HEAD}Content-Length: {len(GOOD)}\r\n{lines}\r\n{GOOD}".encode())
    assert answer.status in statuses, answer


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("port", ["http", "grpc", "tls"])
def test_junk_on_a_socket(both: Fronted, port: str, junk: str) -> None:
    bad_json.send_junk(("127.0.0.1", getattr(both.front, port)), junk)


@pytest.mark.parametrize("rpc", ["ModelInfer", "ServerLive", "ModelReady"])
def test_messages_compressed_or_too_large(both: Fronted, rpc: str) -> None:
    """A bomb in any call would do: Triton unpacks before it looks."""
    zipped = both.front.call(field(1, b"wide" * 10_000), rpc, compression=grpc.Compression.Gzip)
    assert zipped[0] == grpc.StatusCode.UNIMPLEMENTED
    large = bytes(17 << 20 if rpc == "ModelInfer" else 70_000)
    assert both.front.call(large, rpc)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


def prefixed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (prefixed(b""), "grpc", "0"),
        (prefixed(b""), "grpc+proto", "0"),
        (prefixed(b""), "grpc-web", "3"),
        (prefixed(b""), "json", "3"),
        (b"\0\0", "grpc", "3"),
        (prefixed(b"") * 2, "grpc", "3"),
        (prefixed(b"", length=5), "grpc", "3"),
        (prefixed(b"abc", length=2), "grpc", "3"),
        (prefixed(b"", flag=1), "grpc", "12"),
        (prefixed(b"", flag=2), "grpc", "12"),
    ],
)
def test_frames(both: Fronted, body: bytes, kind: str, status: str) -> None:
    """Of ServerLive; curl speaks HTTP/2 without gRPC."""
    url = f"http://{both.front.grpc_url}{SERVICE}/ServerLive"
    headers = ["-H", f"Content-Type: application/{kind}", "-H", "TE: trailers"]
    shown = curl("--http2-prior-knowledge", "-D-", "-o/dev/null", *headers, url, body=body)
    assert re.findall(r"(?mi)^grpc-status: (\d+)", shown) == [status]


def curl(*options: str, body: bytes) -> str:
    command = ["curl", "-s", "--data-binary", "@-", *options]
    done = subprocess.run(command, input=body, capture_output=True, timeout=SECONDS, check=True)
    return done.stdout.decode()


def test_grpc_over_http_1(both: Fronted) -> None:
    """It has no trailers there; nothing reaches Triton."""
    headers = {"Content-Type": "application/grpc", "TE": "trailers"}
    answer = both.front.send("POST", f"{SERVICE}/ServerLive", prefixed(b""), headers)
    assert answer.headers["grpc-status"] == "3"
    assert both.front.logged(answer)["upstream"] == ""


@pytest.mark.parametrize(("shape", "status"), [("[1, 1]", "200"), (f"[1, {2**62}]", "400")])
def test_json_over_http_2(both: Fronted, shape: str, status: str) -> None:
    """Without a length, as HTTP/2 allows; and a shape is a shape."""
    url = f"https://{both.front.tls_url}/v2/models/wide/infer"
    options = ["--cacert", str(both.front.certificate), "-H", "Content-Type:"]
    options += ["-H", "Content-Length:", "-o/dev/null", "-w%{http_version} %{http_code}"]
    assert curl("--http2", *options, url, body=GOOD.replace("[1, 1]", shape).encode()) == (
        f"2 {status}"
    )


def test_slow_clients_are_let_go(both: Fronted) -> None:
    """A body that never comes; a header that never ends."""
    trusted = ssl.create_default_context(cafile=str(both.front.certificate))
    connections = []
    for port in (both.front.http, both.front.tls):
        for start in (HEAD + "Content-Length: 100\r\n\r\n{", HEAD):
            connection: socket.socket = socket.create_connection(("127.0.0.1", port), 30.0)
            if port == both.front.tls:
                connection = trusted.wrap_socket(connection, server_hostname="localhost")
            connection.sendall(start.encode())
            connections.append(connection)
    for connection in connections:
        with connection, suppress(ConnectionResetError):
            while connection.recv(1 << 16):
                pass


@pytest.mark.parametrize(
    "times", [100, pytest.param(3000, marks=pytest.mark.campaign)], ids=["short", "long"]
)
def test_what_passes_harms_nobody(both: Fronted, times: int) -> None:
    """The campaign's requests and those that it leaves out, as they crash a bare Triton: whatever
    becomes of them, no process ends, and no refusal of ours has a 5xx."""
    before = both.processes()
    models = st.sampled_from(sorted(MODELS))

    @settings(GENERATED, max_examples=times)
    @given(call=bad_json.json_calls() | bad_json.binary_calls(), model=models)
    def sent(call: bad_json.HttpCall, model: str) -> None:
        path = re.sub(
            r"models/(embed_encoder|embed|ranker|classify)/", f"models/{model}/", call.path
        )
        body = re.sub(rb'"(TEXT|FEATURES|INPUT_IDS|IMAGE)"', b'"IN"', call.body)
        with suppress(http.client.InvalidURL, UnicodeEncodeError):
            answer = both.front.send(call.method, path, body, call.headers)
            if answer.status >= 500:
                assert both.front.logged(answer)["upstream"] != "", (answer, call)

    @settings(GENERATED, max_examples=times)
    @given(message=bad_messages.messages(), model=models, streams=st.booleans())
    def called(message: bytes, model: str, streams: bool) -> None:
        if bad_messages.is_message(message):
            request = ModelInferRequest.FromString(message)
            request.model_name = model
            for each in request.inputs:
                each.name = "IN"
            message = request.SerializeToString()
        found = both.front.stream([message]) if streams else both.front.call(message)
        assert found[0] not in LOST

    with (
        patch.object(bad_json, "crashes", lambda *_: False),
        patch.object(bad_messages, "crashes", lambda *_: False),
    ):
        sent()
        called()
    assert both.processes() == before
