"""What crashes or fools the embedded Triton (docs/security.md) is refused before it. At the end of
the module, tritonserver and its stubs must be the processes that they were: see front_triton.py."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import ssl
import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import suppress
from unittest.mock import patch

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from tests.deploy.front import SECONDS, SERVICE, Answer
from tests.deploy.front_parameters import Asked, asked
from tests.deploy.front_triton import Fronted
from tests.support import bad_json, bad_messages
from tests.support.bad_json import GENERATED, JUNK
from tests.support.bad_messages import field
from tests.support.processes import until

GOOD = json.dumps({"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1, 1], "data": [1]}]})
HEAD = "POST /v2/models/wide/infer HTTP/1.1\r\nHost: x\r\n"
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
ONE_BYTE_CHUNKS = b"1\r\nx\r\n" * 700_000 + b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def still_serving(both: Fronted) -> Iterator[None]:
    yield
    assert both.echoes()
    assert both.front.send("POST", "/v2/models/wide/infer", GOOD.encode()).status == 200


def refused(both: Fronted, answer: Answer, status: int) -> None:
    assert answer.status == status, answer
    assert answer.error
    assert both.front.logged(answer)["upstream"] == ""


BODIES = {
    "deep JSON": (400, b"[" * 90_000 + b"]" * 90_000, {}),
    "very deep JSON": (413, b"[" * 1_000_000, {}),
    "deep objects": (413, b'{"a":' * 1_000_000, {}),
    "a form": (415, b"a" * 4_000_000, {"Content-Type": FORM}),
    "a form with charset": (415, b"a=b", {"Content-Type": f"{FORM}; charset=utf-8"}),
    "a form in capitals": (415, b"a=b", {"Content-Type": FORM.upper()}),
    "a form in parts": (415, b"a=b", {"Content-Type": "multipart/form-data; boundary=x"}),
    "a gzip bomb": (415, gzip.compress(bytes(1 << 25)), {"Content-Encoding": "gzip"}),
    "deflated": (415, zlib.compress(GOOD.encode()), {"Content-Encoding": "deflate"}),
    "identity": (415, GOOD.encode(), {"Content-Encoding": "identity"}),
    "too large": (413, bytes((16 << 20) + 1), {}),
    "the largest": (413, b" " * (16 << 20), {}),
    "JSON beyond its length": (400, GOOD.encode(), {"Inference-Header-Content-Length": "9999"}),
    "a negative length": (400, GOOD.encode(), {"Inference-Header-Content-Length": "-1"}),
}


@pytest.mark.parametrize("body", BODIES)
def test_bodies(both: Fronted, body: str) -> None:
    status, data, headers = BODIES[body]
    for path in ("/v2/models/wide/infer", "/v2/models/sequence/infer"):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        refused(both, both.front.raw(head.encode() + data), status)


@pytest.mark.parametrize("path", ["/v2/models/wide/infer", "/v2/repository/index", "/v2", "/none"])
def test_chunks(both: Fronted, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    refused(both, both.front.raw(head + b"5\r\nhello\r\n0\r\n\r\n"), 411)
    refused(both, both.front.raw(head + ONE_BYTE_CHUNKS), 411)


HEADERS = {
    "a length twice": ("Inference-Header-Content-Length: {n}\r\n" * 2, (200, 400)),
    "two lengths of the body": ("Content-Length: 5\r\n", (400,)),
    "both kinds of length": ("Transfer-Encoding: chunked\r\n", (400, 411)),
    "an encoding unknown": ("Transfer-Encoding: gzip\r\n", (400, 411, 501)),
    "a large header": ("X: " + "a" * 9000 + "\r\n", (431,)),
    "many headers": ("X: a\r\n" * 10_000, (431,)),
    "space before the colon": ("Transfer-Encoding : chunked\r\n", (400, 411)),
    "a folded line": ("X: a\r\n b\r\n", (400,)),
    "a NUL": ("X: a\0b\r\n", (400,)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(both: Fronted, case: str) -> None:
    """Not one of them is a way to show Triton another request than the one that is checked."""
    lines, statuses = HEADERS[case]
    head = HEAD + f"Content-Length: {len(GOOD)}\r\n" + lines.format(n=len(GOOD)) + "\r\n"
    answer = both.front.raw((head + GOOD).encode())
    assert answer.status in statuses, answer


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("port", ["http", "grpc", "tls"])
def test_junk_on_a_socket(both: Fronted, port: str, junk: str) -> None:
    bad_json.send_junk(("127.0.0.1", getattr(both.front, port)), junk)


def code(both: Fronted, message: bytes, rpc: str = "ModelInfer", **more: object) -> grpc.StatusCode:
    with grpc.insecure_channel(both.front.grpc_url) as channel:
        try:
            channel.unary_unary(f"{SERVICE}/{rpc}")(message, timeout=SECONDS, **more)
        except grpc.RpcError as error:
            found: grpc.StatusCode = error.code()
            return found
    return grpc.StatusCode.OK


def test_compressed_messages(both: Fronted) -> None:
    """A bomb in any call would do: Triton unpacks before it looks."""
    for rpc in ("ModelInfer", "ServerLive", "ModelReady"):
        message = field(1, b"wide" * 10_000)
        found = code(both, message, rpc, compression=grpc.Compression.Gzip)
        assert found == grpc.StatusCode.UNIMPLEMENTED


def test_too_large_a_message(both: Fronted) -> None:
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert code(both, bytes(17 << 20)) == exhausted
    assert code(both, bytes(70_000), "ModelReady") == exhausted


def prefixed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (prefixed(b""), "0"),
        (b"", "3"),
        (b"\0\0", "3"),
        (prefixed(b"") * 2, "3"),
        (prefixed(b"", length=5), "3"),
        (prefixed(b"abc", length=2), "3"),
        (prefixed(b"", flag=1), "12"),
        (prefixed(b"", flag=2), "12"),
    ],
)
def test_frames(both: Fronted, body: bytes, status: str) -> None:
    assert grpc_over_curl(both, body, "application/grpc") == status


def test_content_types(both: Fronted) -> None:
    assert grpc_over_curl(both, prefixed(b""), "application/grpc+proto") == "0"
    assert grpc_over_curl(both, prefixed(b""), "application/grpc-web") == "3"
    assert grpc_over_curl(both, prefixed(b""), "application/json") == "3"


def grpc_over_curl(both: Fronted, body: bytes, content_type: str) -> str:
    """The grpc-status of ServerLive with exactly this body: curl speaks HTTP/2 without gRPC."""
    url = f"http://{both.front.grpc_url}{SERVICE}/ServerLive"
    headers = ["-H", f"Content-Type: {content_type}", "-H", "TE: trailers"]
    shown = curl("--http2-prior-knowledge", "-D-", "-o/dev/null", *headers, url, body=body)
    found = re.search(r"(?mi)^grpc-status: (\d+)", shown)
    assert found, shown
    return found[1]


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


def test_json_over_http_2(both: Fronted) -> None:
    """Without a length, as HTTP/2 allows; and a shape is a shape."""
    url = f"https://{both.front.tls_url}/v2/models/wide/infer"
    options = ["--cacert", str(both.front.certificate), "-H", "Content-Type:"]
    options += ["-H", "Content-Length:", "-o/dev/null", "-w%{http_version} %{http_code}"]
    for shape, status in (("[1, 1]", "200"), (f"[1, {2**62}]", "400")):
        body = GOOD.replace("[1, 1]", shape).encode()
        assert curl("--http2", *options, url, body=body) == f"2 {status}"


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
    "times", [200, pytest.param(1500, marks=pytest.mark.campaign)], ids=["short", "long"]
)
def test_what_passes_harms_nobody(both: Fronted, times: int) -> None:
    """The campaign's requests and those that it leaves out, as they crash a bare Triton, and
    parameters of all kinds: whatever becomes of them, no process ends, and no refusal of ours has a
    5xx."""
    before = both.processes()
    texts = bad_json.json_calls() | bad_json.binary_calls()
    numbers = ("wide", "fixed", "sequence", "empty")
    models = st.sampled_from([("text", "BYTES"), *((name, "FP32") for name in numbers)])

    @settings(GENERATED, max_examples=times)
    @given(call=texts, model=models)
    def sent(call: bad_json.HttpCall, model: tuple[str, str]) -> None:
        ours = rf"models/{model[0]}/"
        path = re.sub(r"models/(embed_encoder|embed|ranker|classify)/", ours, call.path)
        body = re.sub(rb'"(TEXT|FEATURES|INPUT_IDS|IMAGE)"', b'"IN"', call.body)
        with suppress(http.client.InvalidURL, UnicodeEncodeError):
            answer = both.front.send(call.method, path, body, call.headers)
            if answer.status >= 500:
                assert both.front.logged(answer)["upstream"] != "", (answer, call)

    @settings(GENERATED, max_examples=times)
    @given(message=bad_messages.messages(), model=models)
    def called(message: bytes, model: tuple[str, str]) -> None:
        with suppress(Exception):
            request = ModelInferRequest.FromString(message)
            request.model_name = model[0]
            for each in request.inputs:
                each.name = "IN"
            message = request.SerializeToString()
        assert code(both, message) not in LOST

    @settings(GENERATED, max_examples=times // 2)
    @given(what=asked, model=models)
    def asked_for(what: Asked, model: tuple[str, str]) -> None:
        answer = both.front.send("POST", f"/v2/models/{model[0]}/infer", what.body(model[1]))
        assert answer.status not in (502, 503, 504), (answer, what)
        assert code(both, what.message(*model)) not in LOST, what

    with (
        patch.object(bad_json, "crashes", lambda *_: False),
        patch.object(bad_messages, "crashes", lambda *_: False),
    ):
        sent()
        called()
        asked_for()
    until(lambda: both.processes() == before)
