"""What the front lets through. Nothing here is a Triton."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc.service_pb2 import InferParameter, ModelInferRequest

from tests.deploy.conftest import NewFront
from tests.deploy.front import Front, at
from tests.deploy.front_peers import Upstream
from tests.support.bad_messages import entry, field, varint

INFER = "/v2/models/m/infer"
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def door(new_front: NewFront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """To an upstream that says 200 to everything over HTTP, and over gRPC what is no answer."""
    with (
        Upstream("127.0.0.1", 0, REPLY) as upstream,
        new_front(tmp_path_factory.mktemp("rules"), **at(upstream.port)) as front,
    ):
        yield front


def tensor(*shape: object, **more: object) -> dict[str, Any]:
    return {"name": "IN", "datatype": "FP32", "shape": list(shape), "data": [1], **more}


def body(*inputs: object, **more: object) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


NESTED = "[" * 22 + "]" * 22
PASS = {
    "as many elements as bytes": body(tensor(10, 10)) + b" " * 30,
    "64 inputs": body(*[tensor(1)] * 64),
    "names like keys": body(tensor(1, name='"shape":[9]{', data=["a\\", ':"', '\\"'])),
    "1e0": body(tensor(1)).replace(b"[1]", b"[1e0]", 1),
    "22 lists": body(tensor(1, data=NESTED)).replace(f'"{NESTED}"'.encode(), NESTED.encode()),
    "not UTF-8": body(tensor(1, data=["x"])).replace(b'"x"', b'"\xff\xfe"'),
}
NO_SHAPES: list[tuple[object, ...]] = [
    *((1, 2**62), (2**32, 2**32), (10**300,) * 9, (2**62, 0), (-1, -1), (1.5,), ("1",), (True,)),
    *((), (1,) * 17),
]
REFUSE = {
    **{f"shape {str(shape)[:20]}": body(tensor(*shape)) for shape in NO_SHAPES},
    "more elements than bytes": body(tensor(10, 10))[:-1] + b"}",
    "65 inputs": body(*[tensor(1)] * 65),
    "the second input": body(tensor(1), tensor(1, 2**40)),
    "shape twice": body(tensor(1)).replace(b'"shape"', b'"shape": [1, 4e9], "shape"'),
    "escaped": body(tensor(1)).replace(b'"shape"', rb'"sh\u0061pe": [1, 9999999999], "shape"'),
    "inputs twice": body(tensor(2**40))[:-1] + b', "inputs": []}',
    "inputs that are no list": b'{"inputs": {"0": 1}}',
    "__proto__": b'{"__proto__": {"inputs": [{"shape": [1, 9999999]}]}}',
    "an object as data": body(tensor(1, data=[{"a": 1}])),
    "30 lists": b'{"inputs": [], "x": ' + b"[" * 30 + b"]" * 30 + b"}",
    "parameters of a wrong kind": body(tensor(1), parameters=[1]),
    **{repr(text): text for text in (b"[]", b"null", b"")},
    **{f"{more!r} after it": body(tensor(1)) + more for more in (b"\0", b"{}")},
}
TOO_LARGE = {f"a million {mark!r}": mark * 1_000_000 for mark in (b"[", b'"', b"\\", b"{}")}
JSON_CASES = [
    pytest.param(status, data, id=name)
    for status, cases in ((200, PASS), (400, REFUSE), (413, TOO_LARGE))
    for name, data in cases.items()
]


@pytest.mark.parametrize(("status", "data"), JSON_CASES)
def test_json(door: Front, status: int, data: bytes) -> None:
    assert door.send("POST", INFER, data).status == status


@pytest.mark.parametrize(
    ("value", "status"),
    [
        *(("LENGTH", 200), ("0LENGTH", 200), ("LENGTH, LENGTH", 400), ("LENGTH.0", 400)),
        *((value, 400) for value in ("0", "-1", "99999")),
    ],
)
def test_the_length_of_the_header(door: Front, value: str, status: int) -> None:
    """`body` stands before four octets of data, with which it would be JSON as well."""
    text = body(tensor(1, parameters={"binary_data_size": 4}))
    headers = {"Inference-Header-Content-Length": value.replace("LENGTH", str(len(text)))}
    assert door.send("POST", INFER, text + b"    ", headers).status == status


OPENAI = {
    "a body": ("/v1/embeddings", b'{"model": "m", "input": "a"}', 200, ""),
    "60 deep": ("/v1/embeddings", b'{"a":' * 60 + b"1" + b"}" * 60, 200, ""),
    "70 deep": ("/v1/embeddings", b'{"a":[' * 35 + b"1" + b"]}" * 35, 400, "invalid_body"),
    "brackets in a text": ("/v1/embeddings", b'{"input": "' + b"[" * 500 + b'\\""}', 200, ""),
    "many parts": (
        "/v1/embeddings",
        b'{"input": [' + b'"",' * 200_000 + b'""]}',
        413,
        "body_too_large",
    ),
    "too large": ("/v1/rerank", b" " * (17 << 20), 413, "body_too_large"),
    "Cohere's path": ("/v2/rerank", b"{}", 200, ""),
    "Triton's path": (INFER, body(tensor(1)), 404, "unknown_url"),
    "another path": ("/v1x", b"{}", 404, "unknown_url"),
}


@pytest.mark.parametrize("case", OPENAI)
def test_openais_interface(door: Front, case: str) -> None:
    """On its own port. What the gateway would refuse passes; refusals have OpenAI's form."""
    path, data, status, code = OPENAI[case]
    answer = door.send("POST", path, data, port=door.openai)
    assert answer.status == status
    if code:
        error = json.loads(answer.body)["error"]
        assert (error["type"], error["code"], error["param"]) == (
            "invalid_request_error",
            code,
            None,
        )
        assert error["message"]


STRING, INT64 = field(3, b"a"), field(2, 5)
PASSED, BAD = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT
SEQUENCE = b"sequence_id"
MESSAGES = {
    "empty": (PASSED, b""),
    "packed": (PASSED, field(5, field(3, b"\2\3"))),
    "both ways": (PASSED, field(5, field(3, 2) + field(1, b"IN") + field(3, b"\1"))),
    "both ways, too much": (BAD, field(5, field(3, varint(2**40)) + field(3, 2**40))),
    "large, in a second input": (BAD, field(5, field(3, 1)) + field(5, field(3, 2**62))),
    "2^62 after 1": (BAD, field(5, field(3, b"\1" + varint(2**62)))),
    "two negative ones": (BAD, field(5, field(3, varint(2**64 - 1) * 2))),
    "0": (BAD, field(5, field(3, b"\1\0"))),
    "no shape": (BAD, field(5, field(1, b"IN"))),
    "1 in ten bytes": (PASSED, field(5, field(3, b"\x81" + b"\x80" * 8 + b"\0"))),
    "1 in eleven bytes": (BAD, field(5, field(3, b"\x81" + b"\x80" * 9 + b"\0"))),
    "1 with bits beyond the 64th": (BAD, field(5, field(3, b"\x81" + b"\x80" * 8 + b"\2"))),
    "17 dimensions": (BAD, field(5, field(3, b"\1" * 17))),
    "64 inputs": (PASSED, field(5, field(3, 1)) * 64),
    "65 inputs": (BAD, field(5, field(3, 1)) * 65),
    "many fields": (BAD, field(99, 1) * 1_000_000),
    "a field of 8 bytes, one of 4": (PASSED, b"\xf9\1" + bytes(8) + b"\xfd\1" + bytes(4)),
    "an unknown field": (PASSED, field(99, b"x") + field(98, 2**64 - 1)),
    "a group": (BAD, b"\x2b\x2c"),
    "wire type 7": (BAD, b"\x2f"),
    "inputs as a number": (BAD, field(5, 1)),
    "field 0": (BAD, field(0, b"x")),
    "field 2^29": (BAD, field(1 << 29, b"x")),
    "cut": (BAD, field(5, field(3, b"\1\1"))[:-1]),
    "cut inside": (BAD, field(5, field(3, b"\1\1")[:-1])),
    "a varint without end": (BAD, b"\x80" * 9),
    "a string, then a number": (BAD, field(4, entry(SEQUENCE, STRING, INT64))),
    "named at last": (BAD, field(4, field(1, b"x") + field(2, STRING) + field(1, SEQUENCE))),
    "a key that is a number": (BAD, field(4, field(1, 5))),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message(door: Front, case: str) -> None:
    """Alone, and in a stream."""
    code, message = MESSAGES[case]
    assert door.call(message)[0] == code
    assert door.stream([message])[0] == code


@pytest.mark.parametrize("holder", ["request", "input", "output"])
@pytest.mark.parametrize(
    ("name", "value", "passes_in"),
    [
        ("sequence_id", "a", []),
        ("sequence_id", 5, ["request", "input", "output"]),
        ("shared_memory_region", "a", []),
        ("shared_memory_byte_size", 0, []),
        ("classification", 1, ["request", "input"]),
    ],
)
def test_parameters(door: Front, holder: str, name: str, value: Any, passes_in: list[str]) -> None:
    inputs, outputs = [tensor(1)], [{"name": "OUT"}]
    request = {"inputs": inputs, "outputs": outputs}
    {"request": request, "input": inputs[0], "output": outputs[0]}[holder]["parameters"] = {
        name: value
    }
    message = ModelInferRequest()
    holders: dict[str, Any] = {"request": message, "input": message.inputs.add(shape=[1])}
    holders["output"] = message.outputs.add()
    kind = "string_param" if isinstance(value, str) else "int64_param"
    holders[holder].parameters[name].CopyFrom(InferParameter(**{kind: value}))
    passes = holder in passes_in
    status = door.send("POST", INFER, json.dumps(request).encode()).status
    assert status == (200 if passes else 400)
    assert door.call(message.SerializeToString())[0] == (PASSED if passes else BAD)
