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
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from unittest.mock import patch

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from tests.deploy.front import SECONDS, SERVICE, Answer
from tests.deploy.front_parameters import Asked, asked
from tests.deploy.front_triton import Fronted, fronted
from tests.deploy.test_front_rules import SETTINGS, entry, field, varint
from tests.support.harness import until
from tests.triton import bad_json, bad_messages
from tests.triton.test_campaign import JUNK

GOOD = json.dumps({"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1, 1], "data": [1]}]})
HEAD = "POST /v2/models/wide/infer HTTP/1.1\r\nHost: x\r\n"
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
ONE_BYTE_CHUNKS = b"1\r\nx\r\n" * 700_000 + b"0\r\n\r\n"


@pytest.fixture(scope="module")
def both(
    program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fronted]:
    program("openssl")
    with fronted(program("nginx"), tmp_path_factory.mktemp("crashes")) as started:
        yield started


@pytest.fixture(autouse=True)
def still_serving(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "both" in request.fixturenames:
        both = request.getfixturevalue("both")
        assert both.echoes()
        assert both.front.send("POST", "/v2/models/wide/infer", GOOD.encode()).status == 200


def shaped(*shape: int, model: str = "wide") -> tuple[str, bytes]:
    tensor = {"name": "IN", "datatype": "FP32", "shape": shape, "data": [1]}
    return f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode()


def refused(both: Fronted, answer: Answer, status: int) -> None:
    assert answer.status == status, answer
    assert answer.error
    assert both.front.logged(answer)["upstream"] == ""


@pytest.mark.parametrize("model", ["wide", "fixed"])
@pytest.mark.parametrize(
    "shape", [(1, 2**62), (1, 2**40), (2**32 + 1, 1), (0, 1), (2**62, 0), (2**33, 2**31), (-1, -1)]
)
def test_shapes(both: Fronted, shape: tuple[int, int], model: str) -> None:
    refused(both, both.front.send("POST", *shaped(*shape, model=model)), 400)
    message = ModelInferRequest(model_name=model, raw_input_contents=[b""])
    message.inputs.add(name="IN", datatype="FP32", shape=shape)
    assert code(both, message.SerializeToString()) == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("model", "datatype"), [("text", "BYTES"), ("empty", "FP32")])
@pytest.mark.parametrize("count", [0, 1, 2**40])
def test_classes(both: Fronted, model: str, datatype: str, count: int) -> None:
    """Triton divides by the size of an element, which texts have not; or takes the best of none."""
    what = Asked({}, {}, [{"classification": count}])
    body = what.body(datatype)
    refused(both, both.front.send("POST", f"/v2/models/{model}/infer", body), 400)
    assert code(both, what.message(model, datatype)) == grpc.StatusCode.INVALID_ARGUMENT


def test_parameters_harm_nobody(both: Fronted) -> None:
    """Whatever parameters a request, its input and its outputs have, each is answered."""
    numbers = ("wide", "fixed", "sequence", "empty")
    models = st.sampled_from([("text", "BYTES"), *((name, "FP32") for name in numbers)])

    @settings(SETTINGS, max_examples=600)
    @given(what=asked, model=models)
    def sent(what: Asked, model: tuple[str, str]) -> None:
        answer = both.front.send("POST", f"/v2/models/{model[0]}/infer", what.body(model[1]))
        assert answer.status not in (502, 503, 504), (answer, what)
        assert code(both, what.message(*model)) not in LOST, what

    before = both.processes()
    sent()
    assert both.processes() == before


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
    "string sequence id": (
        400,
        GOOD[:-1].encode() + b', "parameters": {"sequence_id": "a", "sequence_start": true}}',
        {},
    ),
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
    address = "127.0.0.1", getattr(both.front, port)
    with socket.create_connection(address, 10.0) as connection, suppress(OSError):
        connection.sendall(JUNK[junk])
        connection.settimeout(0.1)
        connection.recv(1 << 16)


def code(both: Fronted, message: bytes, rpc: str = "ModelInfer", **more: object) -> grpc.StatusCode:
    with grpc.insecure_channel(both.front.grpc_url) as channel:
        try:
            channel.unary_unary(f"{SERVICE}/{rpc}")(message, timeout=SECONDS, **more)
        except grpc.RpcError as error:
            found: grpc.StatusCode = error.code()
            return found
    return grpc.StatusCode.OK


MESSAGES = {
    "string sequence id": field(4, entry(b"sequence_id", field(3, b"a"))),
    "shared memory": field(5, field(3, 1) + field(4, entry(b"shared_memory_region", b""))),
    "2^62 in two parts": field(5, field(1, b"IN") + field(3, 1) + field(3, varint(2**62))),
    "groups": b"\x0b" * 100_000,
    "fields": field(99, 1) * 1_000_000,
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(both: Fronted, case: str) -> None:
    begun = time.monotonic()
    for model in (b"wide", b"sequence"):
        assert code(both, field(1, model) + MESSAGES[case]) == grpc.StatusCode.INVALID_ARGUMENT
    assert time.monotonic() - begun < 5


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
    trust = [
        "--cacert",
        str(both.front.certificate),
        "-H",
        "Content-Type:",
        "-H",
        "Content-Length:",
    ]
    shown = ["-o/dev/null", "-w%{http_version} %{http_code}"]
    for body, status in ((GOOD.encode(), "200"), (shaped(1, 2**62)[1], "400")):
        assert curl("--http2", *trust, *shown, url, body=body) == f"2 {status}"


@pytest.mark.parametrize("port", ["http", "tls"])
def test_slow_clients_are_let_go(both: Fronted, port: str) -> None:
    """A body that never comes; a header that never ends."""
    connections = []
    for start in (HEAD + "Content-Length: 100\r\n\r\n{", HEAD):
        connection: socket.socket = socket.create_connection(
            ("127.0.0.1", getattr(both.front, port)), 20.0
        )
        if port == "tls":
            context = ssl.create_default_context(cafile=str(both.front.certificate))
            connection = context.wrap_socket(connection, server_hostname="localhost")
        connection.sendall(start.encode())
        connections.append(connection)
    for connection in connections:
        with connection, suppress(ConnectionResetError):
            while connection.recv(1 << 16):
                pass


def test_what_passes_harms_nobody(both: Fronted) -> None:
    """The campaign's requests and those that it leaves out, as they crash a bare Triton: whatever
    becomes of them, no process ends, and no refusal of ours has a 5xx."""
    before = both.processes()
    texts = bad_json.json_calls() | bad_json.binary_calls()

    @SETTINGS
    @given(call=texts, model=st.sampled_from(["wide", "fixed", "text", "sequence"]))
    def sent(call: bad_json.HttpCall, model: str) -> None:
        path = re.sub(
            r"models/(embed_encoder|embed|ranker|classify)/", f"models/{model}/", call.path
        )
        body = re.sub(rb'"(TEXT|FEATURES|INPUT_IDS|IMAGE)"', b'"IN"', call.body)
        with suppress(http.client.InvalidURL, UnicodeEncodeError):
            answer = both.front.send(call.method, path, body, call.headers)
            if answer.status >= 500:
                assert both.front.logged(answer)["upstream"] != "", (answer, call)

    @SETTINGS
    @given(message=bad_messages.messages(), model=st.sampled_from(["wide", "fixed", "text"]))
    def called(message: bytes, model: str) -> None:
        with suppress(Exception):
            request = ModelInferRequest.FromString(message)
            request.model_name = model
            for each in request.inputs:
                each.name = "IN"
            message = request.SerializeToString()
        assert code(both, message) not in LOST

    with (
        patch.object(bad_json, "crashes", lambda *_: False),
        patch.object(bad_messages, "crashes", lambda *_: False),
    ):
        sent()
        called()
    until(lambda: both.processes() == before)
