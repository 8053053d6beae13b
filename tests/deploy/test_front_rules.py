"""What the front lets through, against the same rules in Python. Nothing here is a Triton."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from unittest.mock import patch

import grpc
import pytest
from hypothesis import given, settings
from tritonclient.grpc.service_pb2 import ModelInferRequest

from tests.deploy.front import SERVICE, Front, front
from tests.deploy.front_oracle import json_passes, message_passes
from tests.deploy.front_parameters import Asked, asked
from tests.deploy.front_peers import GrpcUpstream, Upstream
from tests.support import bad_json, bad_messages
from tests.support.bad_json import GENERATED
from tests.support.bad_messages import entry, field, varint
from tests.support.programs import Program

INFER = "/v2/models/m/infer"
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
TIMES = pytest.mark.parametrize(
    "times", [400, pytest.param(1500, marks=pytest.mark.campaign)], ids=["short", "long"]
)


@pytest.fixture(scope="module")
def door(
    program: Program, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Front, GrpcUpstream]]:
    """A front of an HTTP upstream and a gRPC upstream that take everything."""
    folder = tmp_path_factory.mktemp("rules")
    program("openssl")
    with Upstream("127.0.0.1", 0, REPLY) as http_upstream, GrpcUpstream() as grpc_upstream:
        ports = {
            "UPSTREAM_HTTP_PORT": str(http_upstream.port),
            "UPSTREAM_GRPC_PORT": str(grpc_upstream.port),
        }
        with front(program("nginx"), folder, UPSTREAM="127.0.0.1", **ports) as started:
            yield started, grpc_upstream


def tensor(*shape: object, **more: object) -> dict[str, object]:
    return {"name": "IN", "datatype": "FP32", "shape": list(shape), "data": [1], **more}


def body(*inputs: object, **more: object) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


NESTED = "[" * 22 + "]" * 22
PASS = {
    "as many elements as bytes": body(tensor(10, 10)) + b" " * 30,
    "64 inputs": body(*[tensor(1)] * 64),
    "names like keys": body(tensor(1, name='"shape":[9]{', data=["a\\", ':"', '\\"'])),
    "strings like JSON": body(tensor(1, data=['":":', "\\\\", '\\"'])),
    "1e0": body(tensor(1)).replace(b"[1]", b"[1e0]", 1),
    "22 lists": body(tensor(1, data=NESTED)).replace(f'"{NESTED}"'.encode(), NESTED.encode()),
    "not UTF-8": body(tensor(1, data=["x"])).replace(b'"x"', b'"\xff\xfe"'),
    "not UTF-8, in a key": body(tensor(1, x=1)).replace(b'"x"', b'"\xff"'),
}
NO_SHAPES: list[tuple[object, ...]] = [
    *((1, 2**62), (2**32 + 1, 1), (2**32, 2**32), (10**300,) * 9, (1, 0), (2**62, 0), (-1,)),
    *((-1, -1), (1.5,), ("1",), (True,), (None,), (), (1,) * 17),
]
REFUSE = {
    **{f"shape {str(shape)[:20]}": body(tensor(*shape)) for shape in NO_SHAPES},
    "more elements than bytes": body(tensor(10, 10))[:-1] + b"}",
    "65 inputs": body(*[tensor(1)] * 65),
    "the second input": body(tensor(1), tensor(1, 2**40)),
    "shape twice": body(tensor(1)).replace(b'"shape"', b'"shape": [1, 4e9], "shape"'),
    "escaped": body(tensor(1)).replace(b'"shape"', rb'"sh\u0061pe": [1, 9999999999], "shape"'),
    "inputs twice": body(tensor(2**40))[:-1] + b', "inputs": []}',
    "__proto__": b'{"__proto__": {"inputs": [{"shape": [1, 9999999]}]}}',
    "an object as data": body(tensor(1, data=[{"a": 1}])),
    "30 lists": b'{"inputs": [], "x": ' + b"[" * 30 + b"]" * 30 + b"}",
    "parameters of a wrong kind": body(tensor(1), parameters=[1]),
    **{repr(text): text for text in (b"[]", b"null", b"")},
    "NaN": body(tensor(1, data=[float("nan")])),
    **{f"{more!r} after it": body(tensor(1)) + more for more in (b"\0", b"{}")},
}
TOO_LARGE = {f"a million {mark!r}": mark * 1_000_000 for mark in (b"[", b'"', b"\\", b"{}")}
JSON_CASES = [
    pytest.param(status, data, id=name)
    for status, cases in ((200, PASS), (400, REFUSE), (413, TOO_LARGE))
    for name, data in cases.items()
]


@pytest.mark.parametrize(("status", "data"), JSON_CASES)
def test_json(door: tuple[Front, GrpcUpstream], status: int, data: bytes) -> None:
    assert json_passes(data) == (status == 200) or status == 413
    assert door[0].send("POST", INFER, data).status == status


@pytest.mark.parametrize(
    ("value", "status"),
    [
        *(("LENGTH", 200), ("0LENGTH", 200)),
        *((value, 400) for value in ("", "0", "-1", "x", "99999", "1e2", "9" * 30)),
        *(("LENGTH, LENGTH", 400), ("+LENGTH", 400)),
    ],
)
def test_the_length_of_the_header(
    door: tuple[Front, GrpcUpstream], value: str, status: int
) -> None:
    """`body` stands before four octets of data, which are not JSON."""
    text = body(tensor(1, parameters={"binary_data_size": 4}))
    header = value.replace("LENGTH", str(len(text)))
    answer = door[0].send(
        "POST", INFER, text + b"\0\0\0\1", {"Inference-Header-Content-Length": header}
    )
    assert answer.status == status


@TIMES
def test_json_as_the_oracle_has_it(door: tuple[Front, GrpcUpstream], times: int) -> None:
    """The campaign's requests, with those that crash Triton."""
    verdicts: Counter[bool] = Counter()

    @settings(GENERATED, max_examples=times)
    @given(call=bad_json.json_calls() | bad_json.binary_calls())
    def agree(call: bad_json.HttpCall) -> None:
        header = call.headers.get("Inference-Header-Content-Length")
        headers = {} if header is None else {"Inference-Header-Content-Length": header}
        expected = json_passes(call.body, header)
        verdicts[expected] += 1
        try:
            answer = door[0].send("POST", INFER, call.body, headers)
        except http.client.HTTPException as error:
            raise AssertionError(f"no answer to {call}") from error
        assert (answer.status == 200) == expected, (answer, call)
        assert expected or answer.status in (400, 413), (answer, call)

    with patch.object(bad_json, "crashes", lambda *_: False):
        agree()
    assert min(verdicts[True], verdicts[False]) > times // 30, verdicts


STRING, INT64 = field(3, b"a"), field(2, 5)
OK, BAD = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT
SEQUENCE, REGION, CLASSES = b"sequence_id", b"shared_memory_region", b"classification"
MESSAGES = {
    "empty": (OK, b""),
    "packed": (OK, field(5, field(3, b"\2\3"))),
    "one by one": (OK, field(5, field(3, 2) + field(3, 3))),
    "both ways": (OK, field(5, field(3, 2) + field(1, b"IN") + field(3, b"\1"))),
    "both ways, too much": (BAD, field(5, field(3, varint(2**40)) + field(3, 2**40))),
    "large, in a second input": (BAD, field(5, field(3, 1)) + field(5, field(3, 2**62))),
    "2^62 after 1": (BAD, field(5, field(3, b"\1" + varint(2**62)))),
    "negative": (BAD, field(5, field(3, varint(2**64 - 1)))),
    "two negative ones": (BAD, field(5, field(3, varint(2**64 - 1) * 2))),
    "0": (BAD, field(5, field(3, b"\1\0"))),
    "no shape": (BAD, field(5, field(1, b"IN"))),
    "1 in ten bytes": (OK, field(5, field(3, b"\x81" + b"\x80" * 8 + b"\0"))),
    "1 in eleven bytes": (BAD, field(5, field(3, b"\x81" + b"\x80" * 9 + b"\0"))),
    "1 with bits beyond the 64th": (BAD, field(5, field(3, b"\x81" + b"\x80" * 8 + b"\2"))),
    "17 dimensions": (BAD, field(5, field(3, b"\1" * 17))),
    "a megabyte of dimensions": (BAD, field(5, field(3, b"\1" * (1 << 20)))),
    "64 inputs": (OK, field(5, field(3, 1)) * 64),
    "65 inputs": (BAD, field(5, field(3, 1)) * 65),
    "many fields": (BAD, field(99, 1) * 1_000_000),
    "many groups": (BAD, b"\x0b" * 100_000),
    "a field of 8 bytes, one of 4": (OK, b"\xf9\1" + bytes(8) + b"\xfd\1" + bytes(4)),
    "an unknown field": (OK, field(99, b"x") + field(98, 2**64 - 1)),
    "a group": (BAD, b"\x2b\x2c"),
    "wire type 6": (BAD, b"\x2e\1"),
    "wire type 7": (BAD, b"\x2f"),
    "inputs as a number": (BAD, field(5, 1)),
    "field 0": (BAD, field(0, b"x")),
    "field 2^29": (BAD, field(1 << 29, b"x")),
    "a tag of six bytes": (BAD, b"\xaa\x80\x80\x80\x80\0\0"),
    "cut": (BAD, field(5, field(3, b"\1\1"))[:-1]),
    "cut inside": (BAD, field(5, field(3, b"\1\1")[:-1])),
    "a varint without end": (BAD, b"\x80" * 9),
    "a string, then a number": (BAD, field(4, entry(SEQUENCE, STRING, INT64))),
    "a number, then a string": (BAD, field(4, entry(SEQUENCE, INT64 + STRING))),
    "named at last": (BAD, field(4, field(1, b"x") + field(2, STRING) + field(1, SEQUENCE))),
    "a key that is a number": (BAD, field(4, field(1, 5))),
}


def call(channel: grpc.Channel, message: bytes, rpc: str = "ModelInfer") -> grpc.StatusCode:
    try:
        channel.unary_unary(f"{SERVICE}/{rpc}")(message, timeout=20)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return OK


@pytest.fixture(scope="module")
def channel(door: tuple[Front, GrpcUpstream]) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(door[0].grpc_url) as opened:
        yield opened


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message(door: tuple[Front, GrpcUpstream], channel: grpc.Channel, case: str) -> None:
    code, message = MESSAGES[case]
    arrived = len(door[1].calls)
    assert call(channel, message) == code
    assert [each[1] for each in door[1].calls[arrived:]] == [message] * (code == OK)
    assert code != OK or message_passes(message), "the case itself is wrong"


@TIMES
def test_messages_as_the_oracle_has_it(channel: grpc.Channel, times: int) -> None:
    """Nothing bad passes; what is good does, unless only a lenient reader can take it."""
    verdicts: Counter[bool | None] = Counter()

    @settings(GENERATED, max_examples=times)
    @given(message=bad_messages.messages())
    def agree(message: bytes) -> None:
        expected, code = message_passes(message), call(channel, message)
        verdicts[expected] += 1
        assert code in (OK, BAD), (code, message)
        assert code == BAD or expected is not False, message
        assert code == OK or not (expected and is_plain(message)), message

    with patch.object(bad_messages, "crashes", lambda *_: False):
        agree()
    assert min(verdicts[True], verdicts[False]) > times // 30, verdicts


@TIMES
def test_parameters_as_the_oracle_has_it(
    door: tuple[Front, GrpcUpstream], channel: grpc.Channel, times: int
) -> None:
    """Of the request, the input and the outputs, in both protocols."""
    verdicts: Counter[bool | None] = Counter()

    @settings(GENERATED, max_examples=times)
    @given(what=asked)
    def agree(what: Asked) -> None:
        expected = json_passes(what.body()), message_passes(what.message())
        verdicts.update(expected)
        assert (door[0].send("POST", INFER, what.body()).status == 200) == expected[0], what
        assert call(channel, what.message()) == (OK if expected[1] else BAD), what

    agree()
    assert min(verdicts[True], verdicts[False]) > times // 30, verdicts


def is_plain(message: bytes) -> bool:
    """Whether all of it has a meaning: no unknown fields, no numbers longer than need be."""
    request = ModelInferRequest.FromString(message)
    request.DiscardUnknownFields()
    return bool(request.ByteSize() == len(message))
