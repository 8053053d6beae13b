"""Requests over HTTP as KServe v2 knows them, and what becomes of them in a hostile hand."""

from __future__ import annotations

import copy
import gzip
import json
import math
import re
import socket
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.images import encoded

HOSTILE: list[Any] = [
    *(None, True, False, "", "x", "1", "\0", "../..", "%2e%2e%2f", "é" * 50, "x" * 5000),
    *(0, 1, -1, 1.5, 2**31, 2**32 + 1, 2**40, 2**62, 2**63, 2**64, 10**400, 1e308, -0.0),
    *(float("nan"), float("inf"), [], {}, [[]], [1, 1], [-1], ["a", 1, None], {"a": {"b": []}}),
]
PARAMETERS = (
    *("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "classification"),
    *("binary_data", "binary_data_size", "binary_data_output", "triton_final", "custom"),
    *("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"),
)
VALUES = (1, 0, -1, 2**31, 2**63, "x", "a/b", True, 1.5, None, [1])
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BOGUS")
PATHS = (
    *("/", "/v2", "/v2/models/embed", "/v2/models//infer", "//v2/models/embed/infer", "/v2/../etc"),
    *("/v2/models/embed/versions/-1/infer", "/v2/models/embed/versions/%s/infer" % ("9" * 30)),
    *("/v2/models/nope/infer", "/v2/models/..%2f..%2fetc/infer", "/v2/models/embed%00/infer"),
    *("/v2/health/live", "/v2/repository/index", "/v2/systemsharedmemory/status", "/v2/logging"),
)
MARKS = [each.encode() for each in (*'{}[],:"\\\0\x7fé', "[" * 500)]
ENCODINGS = [{"Content-Encoding": each} for each in ("gzip", "deflate", "br", "gzip, gzip", "")]
FREE_DIMS = ("embed_encoder", "embed_vectors")
"""Models with a dimension of -1, of which a size of 2^62 kills the stub: see test_campaign."""
FILLED_MEMORY = 1 << 24
JUNK = {
    "noise": bytes(range(256)) * 16,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\0\xff\xff\xff\xff\xff" + bytes(99),
    "half a line": b"POST /v2/models/emb",
    "long line": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
    "endless": b"POST /v2 HTTP/1.1\r\nContent-Length: 9223372036854775807\r\n\r\nx",
    "chunk": b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n",
    "chunks": b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000,
}
GENERATED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    verbosity=Verbosity.quiet,
    phases=[Phase.generate],  # the failing request is in the message; no need to shrink
    suppress_health_check=list(HealthCheck),
)
_SHAPE = re.compile(r'"shape": *\[([^\]\[]*)\]')
_DATATYPE = re.compile(r'"datatype": *"(\w+)"')


def _string(text: bytes) -> bytes:
    """As BYTES are sent: the length, then the text."""
    return len(text).to_bytes(4, "little") + text


def _int32(*values: int) -> tuple[list[int], bytes]:
    return [*values], np.array(values, np.int32).tobytes()


_PICTURE = _string(encoded(Image.new("L", (8, 8), 99)))
GOOD: dict[str, list[tuple[str, str, list[int], list[Any], bytes]]] = {
    "embed": [("TEXT", "BYTES", [1, 1], ["a text"], _string(b"a text"))],
    "embed_encoder": [
        ("INPUT_IDS", "INT32", [2, 3], *_int32(101, 7592, 102, 101, 102, 0)),
        ("LENGTHS", "INT32", [2, 1], *_int32(3, 2)),
    ],
    "ranker": [("FEATURES", "FP32", [1, 256], [0.5] * 256, bytes(1024))],
    "classify": [
        ("IMAGE", "BYTES", [1, 1], ["no picture"], _PICTURE),
        ("TOP_K", "INT32", [1, 1], *_int32(2)),
    ],
}
"""Of each model the inputs of a request: name, datatype, shape, data in JSON and as bytes."""
_GENERATE = "/v2/models/embed/generate", {"TEXT": "a text"}
_MORE = {"id": "7", "parameters": {"custom": 1}, "outputs": [{"name": "EMBEDDING"}]}


@dataclass(frozen=True)
class HttpCall:
    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def crashes(path: str, text: str) -> bool:
    """Whether the embedded server is known to die of it, or to take gigabytes: it makes room for
    what the shape says before it looks at the data. Not to be defended here, so left out."""
    kinds = _DATATYPE.findall(text)
    if '"shape"' not in text or (kinds and set(kinds) == {"BYTES"}):
        return False
    sizes = [
        math.prod(int(number) for number in re.findall(r"\d+", dims))
        for dims in _SHAPE.findall(text)
    ]
    free = any(model in path for model in FREE_DIMS)
    return ('"data"' in text or free) and max(sizes, default=0) > FILLED_MEMORY


def send_junk(address: tuple[str, int], junk: str) -> None:
    """On a connection of its own, which may be closed without a word."""
    with socket.create_connection(address, 10.0) as connection, suppress(OSError):
        connection.sendall(JUNK[junk])
        connection.settimeout(0.1)
        connection.recv(1 << 16)


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 4 * len(others) + [*others])


@st.composite
def json_calls(draw: st.DrawFn) -> HttpCall:
    """A valid request, with up to three things changed in its body, and perhaps its wrapping."""
    model = draw(st.sampled_from([*GOOD]))
    inputs = [{"name": n, "datatype": d, "shape": s, "data": x} for n, d, s, x, _ in GOOD[model]]
    whole = f"/v2/models/{model}/infer", {"inputs": inputs} | draw(mostly({}, _MORE))
    path, body = copy.deepcopy(draw(mostly(whole, _GENERATE)))
    for _ in range(draw(st.integers(0, 3))):
        change(draw, body, VALUES)
    text = json.dumps(body)
    if crashes(path, text):
        return HttpCall("POST", path, b'{"inputs": []}')
    data = draw(mostly(bytes, gzip.compress, zlib.compress))(draw(spoilt(text.encode())))
    method, path = draw(mostly("POST", *METHODS)), draw(mostly(path, *PATHS))
    return HttpCall(method, path, data, draw(mostly({}, *ENCODINGS)))


@st.composite
def binary_calls(draw: st.DrawFn) -> HttpCall:
    """Tensors behind the JSON, with sizes, lengths and shapes that may lie."""
    model, tensors = draw(st.sampled_from([*GOOD.items()]))
    inputs = [
        {"name": n, "datatype": d, "shape": [*s], "parameters": {"binary_data_size": len(blob)}}
        for n, d, s, _, blob in tensors
    ]
    body: dict[str, Any] = {"inputs": inputs}
    for _ in range(draw(st.integers(0, 2))):
        change(draw, body, VALUES)
    text, path = json.dumps(body), f"/v2/models/{model}/infer"
    if crashes(path, text):
        text = '{"inputs": []}'
    data = draw(spoilt(b"".join(blob for *_, blob in tensors)))
    length = draw(mostly(len(text), 0, -1, 1, 10**6, 2**63, 2**64, "x", ""))
    headers = {"Inference-Header-Content-Length": str(length)}
    return HttpCall("POST", path, text.encode() + data, headers)


def change(draw: st.DrawFn, body: dict[str, Any], values: Sequence[Any]) -> None:
    """Puts a hostile value, a parameter with one of `values`, a second one, or none in the place of
    one of the body."""
    holder, key = draw(st.sampled_from([*_places(body)] or [(body, "inputs")]))
    kind = draw(st.sampled_from(["value", "value", "parameter", "twice", "none"]))
    if kind == "value":
        value = draw(st.sampled_from(HOSTILE) | st.integers() | st.text(max_size=20))
        holder[key] = copy.deepcopy(value)
    elif kind == "parameter":
        inner = [body, *(each for each, _ in _places(body) if isinstance(each, dict))]
        target = draw(st.sampled_from(inner))
        name, value = draw(st.sampled_from(PARAMETERS)), draw(st.sampled_from(values))
        target["parameters"] = {name: copy.deepcopy(value)}
    elif isinstance(holder, list) and kind == "twice":
        holder.append(copy.deepcopy(holder[key]))
    elif holder:
        holder.pop(key)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in it; of long lists only the ends."""
    if isinstance(node, dict):
        keys: list[Any] = list(node)
    else:
        keys = sorted({0, len(node) - 1}) if isinstance(node, list) and node else []
    for key in keys:
        yield node, key
        yield from _places(node[key])


@st.composite
def spoilt(draw: st.DrawFn, data: bytes) -> bytes:
    """Mostly as it is; or cut, or longer, or with something put in between."""
    at = draw(st.integers(0, len(data)))
    put = st.sampled_from(MARKS) | st.binary(max_size=9)
    end = draw(mostly(data[at:], b"", data[at + 1 :]))
    return data[:at] + draw(st.just(b"") | st.just(b"") | put) + end
