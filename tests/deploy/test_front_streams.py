"""Answers that come in parts through the front: at once, of Triton and of the gateway, with their
messages checked, their number, their idle time and their length bounded."""

from __future__ import annotations

import http.client
import json
import queue
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import InferInput
from tritonclient.grpc.service_pb2 import ModelInferRequest
from tritonclient.utils import InferenceServerException

from tests.deploy.conftest import Fronted, NewFront
from tests.deploy.front import SECONDS, SERVICE, Front, at, behind
from tests.deploy.front_peers import Upstream
from tests.deploy.test_front import connect
from tests.deploy.test_front_crashes import curl, prefixed
from tests.support.bad_json import GENERATED
from tests.support.bad_messages import field
from tests.support.processes import until

STREAM = "/v2/models/parts/generate_stream"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PART = b"9\r\ndata: 1\n\n\r\n"
DOORS = {"Triton": STREAM, "OpenAI": "/v1/chat/completions"}
TALK = b'{"model": "chat", "messages": []}'


def message(*values: float, **more: Any) -> bytes:
    """A request to the model `parts`."""
    made = ModelInferRequest(model_name="parts")
    made.inputs.add(name="IN", datatype="FP32", shape=[1, len(values)])
    made.raw_input_contents.append(np.array(values, np.float32).tobytes())
    for name, value in more.items():
        made.parameters[name].string_param = value
    return bytes(made.SerializeToString())


@contextmanager
def opened(port: int, path: str, body: bytes) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("POST", path, body)
    answer = connection.getresponse()
    try:
        yield answer
    finally:
        answer.close()
        connection.close()


def event(answer: http.client.HTTPResponse) -> float:
    """The value of the next part."""
    line = answer.readline()
    assert line.startswith(b"data: "), line
    answer.readline()
    return float(json.loads(line[6:])["OUT"])


def test_parts_come_at_once_over_http(both: Fronted, gate: Path) -> None:
    """The model waits after its first one for a file that is made when the client has it."""
    body = json.dumps({"IN": [1.0, 2.0, 3.0], "gate": str(gate)}).encode()
    with opened(both.front.http, STREAM, body) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert event(answer) == 1.0
        (gate / "open").touch()
        assert [event(answer), event(answer), answer.read()] == [2.0, 3.0, b""]


@pytest.mark.parametrize("way", ["grpc", "grpcs"])
def test_parts_come_at_once_over_grpc(both: Fronted, gate: Path, way: str) -> None:
    """And several requests share a stream."""
    found: queue.SimpleQueue[tuple[Any, InferenceServerException | None]] = queue.SimpleQueue()
    with connect(both.front, way) as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        tensor = InferInput("IN", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.array([[1, 2, 3]], np.float32))
        for parameters in ({"gate": str(gate)}, {}):
            client.async_stream_infer("parts", [tensor], parameters=parameters)
            if parameters:
                assert value_of(found) == 1.0
                (gate / "open").touch()
                assert [value_of(found), value_of(found)] == [2.0, 3.0]
        assert [value_of(found) for _ in range(3)] == [1.0, 2.0, 3.0]
        client.stop_stream()


def value_of(found: queue.SimpleQueue[Any]) -> float:
    result, error = found.get(timeout=SECONDS)
    assert error is None, error
    return float(result.as_numpy("OUT").item())


def test_nobody_can_have_streams_end_with_a_status(both: Fronted) -> None:
    """Which Triton 24.10 does not always survive."""
    found: queue.SimpleQueue[tuple[Any, InferenceServerException | None]] = queue.SimpleQueue()
    with connect(both.front, "grpc") as client:
        asks = {"triton_grpc_error": "true"}
        client.start_stream(lambda result, error: found.put((result, error)), headers=asks)
        tensor = InferInput("IN", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
        client.async_stream_infer("no_model", [tensor])
        _, error = found.get(timeout=SECONDS)
        client.stop_stream()
    assert error is not None
    assert (error.status(), "unknown model" in error.message()) == (None, True)


def leave_http(front: Front, gate: Path) -> None:
    body = json.dumps({"IN": [1.0, 2.0], "gate": str(gate)}).encode()
    with opened(front.http, STREAM, body) as answer:
        assert event(answer) == 1.0


def leave_grpc(front: Front, gate: Path) -> None:
    with grpc.insecure_channel(front.grpc_url) as channel:
        call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(
            iter([message(1.0, 2.0, gate=str(gate))]), timeout=SECONDS
        )
        assert next(call)
        call.cancel()


@pytest.mark.parametrize("leave", [leave_http, leave_grpc])
def test_who_goes_away_cancels(
    both: Fronted, gate: Path, leave: Callable[[Front, Path], None]
) -> None:
    leave(both.front, gate)
    until((gate / "cancelled").exists)


BAD = {
    "a shape": (field(5, field(3, b"\1" + b"\xff" * 8 + b"\1")), "INVALID_ARGUMENT"),
    "a sequence": (message(1.0, sequence_id="a"), "INVALID_ARGUMENT"),
    "no message": (b"\xff", "INVALID_ARGUMENT"),
    "too large": (bytes(17 << 20), "RESOURCE_EXHAUSTED"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_bad_message_ends_its_stream(both: Fronted, bad: str, good: int) -> None:
    """The first or a later one; what Triton answered before is handed on."""
    data, code = BAD[bad]
    answered: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def messages() -> Iterator[bytes]:
        for _ in range(good):
            yield message(1.0, 2.0)
            answered.get(timeout=SECONDS)
            answered.get(timeout=SECONDS)
        yield data

    found = both.front.stream(messages(), came=lambda: answered.put(True))
    assert (found[0].name, found[2]) == (code, 2 * good)
    assert found[1]


def test_compressed_messages_are_refused_in_streams(both: Fronted) -> None:
    zipped = message(*[1.0] * 5000)  # no client would zip a short one
    found = both.front.stream([zipped], compression=grpc.Compression.Gzip)
    assert found[0] == grpc.StatusCode.UNIMPLEMENTED


def test_messages_need_not_come_in_pieces_of_their_own(both: Fronted) -> None:
    """Many in one frame; then the last of them is bad."""
    good, bad = prefixed(message(1.0, whole="yes")), prefixed(BAD["a shape"][0])
    url = f"http://{both.front.grpc_url}{SERVICE}/ModelStreamInfer"
    headers = ["-H", "Content-Type: application/grpc", "-H", "TE: trailers"]
    for body, status in ((good * 100, "0"), (good * 100 + bad, "3"), (good + b"\0", "0")):
        shown = curl("--http2-prior-knowledge", "-D-", "-o/dev/null", *headers, url, body=body)
        assert re.findall(r"(?mi)^grpc-status: (\d+)", shown) == [status], shown


@pytest.mark.campaign
def test_a_stream_has_some_messages_at_most(both: Fronted) -> None:
    code, sentence, _ = both.front.stream([b""] * 10_001)
    assert (code, "begin another one" in sentence) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)


def test_large_messages_pass_whole(both: Fronted) -> None:
    """Beyond any window of HTTP/2, several at once."""
    values = np.random.default_rng(1).random(1 << 20, np.float32)
    large = message(*values.tolist(), whole="yes")
    found = both.front.stream([large] * 3)
    assert found == (grpc.StatusCode.OK, "", 3)


VALUES: dict[bytes, int] = {
    b'{"IN": [1.0]}': 200,
    b'{"IN": 1.0, "parameters": {"a": "b", "c": 1, "d": true}}': 200,
    b'{"IN": [1.0], "x": "\\"{[:"}': 200,
    **dict.fromkeys(
        (
            *(b"", b"[]", b"null", b"{", b'{"IN": []}', b'{"IN": [[1.0]]}', b'{"IN": {"a": 1}}'),
            *(b'{"IN": null}', b'{"IN": [1.0, null]}', b'{"IN": 1, "IN": 2}'),
            *(b'{"IN": 1, "sequence_id": "a"}', b'{"IN": 1, "parameters": {"sequence_id": "a"}}'),
            *(b'{"IN": 1, "shared_memory_region": "a"}', b'{"IN": 1, "parameters": []}'),
            *(b'{"IN": 1, "parameters": {"parameters": {}}}', b"[" * 90_000),
        ),
        400,
    ),
    b'{"IN": [' + b"1," * (3 << 20) + b"1]}": 413,
    b'{"IN": [' + b'"",' * 200_000 + b'""]}': 413,
}


@pytest.mark.parametrize("path", [STREAM, STREAM.replace("parts/", "parts/versions/1/")])
def test_what_may_be_asked(both: Fronted, path: str) -> None:
    for body, status in VALUES.items():
        answer = both.front.send("POST", path, body)
        assert answer.status == status, (body[:80], answer)
    assert both.front.send("GET", path).status == 405
    headers = {"Inference-Header-Content-Length": "5"}
    assert both.front.send("POST", path, b'{"IN": [1.0]}', headers).status == 400


NAMES = st.sampled_from(
    ["IN", "OUT", "id", "parameters", "sequence_id", "timeout", "priority", "x"]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
FIELDS = st.dictionaries(NAMES, PLAIN | st.lists(PLAIN, max_size=5), max_size=5)


@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_what_passes_harms_nobody(both: Fronted, kind: str) -> None:
    """Of generated bodies; at the end of the session all processes are still there."""

    @settings(GENERATED, max_examples=60)
    @given(
        fields=FIELDS | st.builds(lambda one, other: {**one, "parameters": other}, FIELDS, FIELDS),
        model=st.sampled_from(["parts", "wide", "text", "sequence"]),
    )
    def sent(fields: dict[str, Any], model: str) -> None:
        answer = both.front.send("POST", f"/v2/models/{model}/{kind}", json.dumps(fields).encode())
        if answer.status >= 500:
            assert both.front.logged(answer)["upstream"] != "", (answer, fields)

    before = both.processes()
    sent()
    assert both.processes() == before


Start = Callable[..., AbstractContextManager[tuple[Front, Upstream]]]


@pytest.fixture
def start(new_front: NewFront, tmp_path: Path) -> Start:
    """`with start(MAX_STREAMS="1") as (front, upstream):` of which each answer has no end."""

    @contextmanager
    def started(part: bytes = PART, **more: str) -> Iterator[tuple[Front, Upstream]]:
        with (
            Upstream("127.0.0.1", 0, HEAD, part=part) as upstream,
            new_front(tmp_path / "front", **at(upstream.port), **more) as front,
        ):
            yield front, upstream

    return started


def ask(front: Front, door: str) -> AbstractContextManager[http.client.HTTPResponse]:
    port = front.openai if door == "OpenAI" else front.http
    return opened(port, DOORS[door], TALK if door == "OpenAI" else b'{"IN": 1}')


@pytest.mark.parametrize("door", DOORS)
def test_streams_are_counted_and_hanging_up_is_passed_on(start: Start, door: str) -> None:
    with start(MAX_STREAMS="1") as (front, upstream):
        with ask(front, door) as answer:
            assert answer.readline() == b"data: 1\n"
            for other in DOORS:
                with ask(front, other) as refused:
                    assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
                    told = json.load(refused)["error"]
                code = told["code"] if other == "OpenAI" else "rate_limit_exceeded"
                assert code == "rate_limit_exceeded"
            assert front.stream([])[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert upstream.left.wait(SECONDS)


@pytest.mark.parametrize("door", DOORS)
def test_streams_have_an_end(start: Start, door: str) -> None:
    """It breaks off, so that nobody takes it for whole: one that goes on for ever, and one that
    says nothing more."""
    breaks = pytest.raises((http.client.IncompleteRead, ConnectionResetError))
    with start(STREAM_LIFETIME="1s") as (front, upstream), ask(front, door) as answer:
        with breaks:
            answer.read()
        assert upstream.left.wait(SECONDS)
    assert "a stream took longer than STREAM_LIFETIME" in front.errors
    with start(b"", STREAM_IDLE="1s") as (front, _), ask(front, door) as answer, breaks:
        answer.read()


def test_streams_over_grpc_have_an_end(
    new_front: NewFront, both: Fronted, tmp_path: Path, gate: Path
) -> None:
    """One that goes on for ever is told; nginx breaks off what says nothing more."""
    upstream = behind(both.triton.endpoints)
    with new_front(tmp_path / "one", **upstream, STREAM_LIFETIME="1s") as front:
        code, sentence, came = front.stream([message(1.0, 2.0, endless="yes")])
        assert (code, came > 1) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
        assert "longer than is allowed" in sentence
    with new_front(tmp_path / "two", **upstream, STREAM_IDLE="1s") as front:
        code, _, came = front.stream([message(1.0, 2.0, gate=str(gate))])
        assert (code, came) == (grpc.StatusCode.INTERNAL, 1)
