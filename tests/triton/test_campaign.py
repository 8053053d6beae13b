"""Ten thousand bad requests: each is refused or served, none crashes, shows or costs anything.

They are made by hypothesis, always the same ones; CAMPAIGN_SEED=N in the environment makes others,
CAMPAIGN_TIMES=N makes N times as many.
"""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from server.process.launch import TritonServer
from server.watch import stubs
from tests.triton import bad_json, bad_messages
from tests.triton.bad_json import HttpCall
from tests.triton.calls import settled
from tests.triton.campaign import Health, Sender
from tests.triton.test_server import ECHO, Add, Command, command, wait_until
from tests.triton.test_watcher import answers

SEED = os.environ.get("CAMPAIGN_SEED")
TIMES = int(os.environ.get("CAMPAIGN_TIMES", "1"))
MEMORY_MIB = 300
# What makes the requests, what sends one, and how many rounds of about 40 there are.
KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Sender, Any], None], int]] = {
    "json": (bad_json.json_calls(), Sender.http, 112),
    "binary": (bad_json.binary_calls(), Sender.http, 76),
    "message": (bad_messages.calls(), Sender.grpc, 138),
    "stream": (st.lists(bad_messages.messages(), max_size=9), Sender.stream, 12),
}
LEAST = {"json": 3600, "binary": 1900, "message": 4000, "stream": 500}
JUNK = {
    "noise": bytes(range(256)) * 16,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\0\xff\xff\xff\xff\xff" + bytes(99),
    "half a line": b"POST /v2/models/emb",
    "connect": b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    "long line": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
    "length": b"POST /v2 HTTP/1.1\r\nContent-Length: -1\r\n\r\nx",
    "two lengths": b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 9\r\n\r\nx",
    "endless": b"POST /v2 HTTP/1.1\r\nContent-Length: 9223372036854775807\r\n\r\nx",
    "chunk": b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n",
    "chunks": b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000,
}


@pytest.fixture(scope="module")
def sender(server: TritonServer) -> Iterator[Sender]:
    """At the end the same processes run, as lean as before, and no group was restarted."""
    sender = Sender(server)
    sender.good()
    before = Health.of(server)
    yield sender
    sender.good()
    sender.close()
    after = Health.of(server)
    assert server.returncode is None
    assert before.memory.keys() == after.memory.keys()
    assert before.growth(after) < MEMORY_MIB, (before, after)
    metrics = settled(server.endpoints)
    for model in ("embed_encoder", "ranker", "classifier"):
        assert metrics.total("restarts_total", model=model) == 0


@pytest.mark.timeout(300 * TIMES)
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize("kind", KINDS)
def test_each_is_refused_or_served(sender: Sender, kind: str) -> None:
    requests, send, rounds = KINDS[kind]
    already = sender.sent

    def one_round(requests: list[Any]) -> None:
        for request in requests:
            send(sender, request)
        sender.good()

    test = given(requests=st.lists(requests, min_size=20, max_size=60))(one_round)
    test = test if SEED is None else seed(int(SEED))(test)
    settings(
        max_examples=rounds * TIMES,
        derandomize=SEED is None,
        database=None,
        deadline=None,
        verbosity=Verbosity.quiet,
        phases=[Phase.generate],  # the failing request is in the message; no need to shrink
        suppress_health_check=list(HealthCheck),
    )(test)()
    assert sender.sent - already >= LEAST[kind] * TIMES, sender.answers


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("port", ["http", "grpc", "metrics"])
def test_junk_on_a_socket(sender: Sender, server: TritonServer, port: str, junk: str) -> None:
    """The connection may be closed without a word: who sends this does not speak the protocol."""
    address = server.endpoints.contact, getattr(server.endpoints, port)
    with socket.create_connection(address, 10.0) as connection, suppress(OSError):
        connection.sendall(JUNK[junk])
        connection.settimeout(0.1)
        connection.recv(1 << 16)
    sender.good()


def test_left_alone(sender: Sender, server: TritonServer) -> None:
    """Clients that cancel at once. (One that cancels a stream in the middle leaves a request in
    Triton for ever: it serves on, but that model is never unloaded, nor does a drain end.)"""
    message = bad_messages.valid_message(0)
    with grpc.insecure_channel(server.endpoints.grpc_url) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for _ in range(200):
            stub.ModelInfer.future(message).cancel()
        for _ in range(20):
            stub.ModelStreamInfer(iter([message] * 20)).cancel()
    sender.good()


def test_largest_bodies(sender: Sender) -> None:
    """What the stack limit of server/process/child.py keeps from being the end of the server."""
    path = "/v2/models/embed/infer"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    sender.http(HttpCall("POST", path, b"a" * 4_000_000, form))
    sender.http(HttpCall("POST", path, b"[" * 1_000_000))
    sender.grpc(("ModelInfer", b"\x0b" * 100_000))
    sender.good()


# What is left out above, since nothing of ours stands between: that it still crashes, and that the
# watcher brings back what did. Where one of these fails because nothing crashes any more, take the
# filter `crashes` out of bad_json.py or bad_messages.py.


def test_a_shape_in_json_still_crashes_the_server(add_model: Add) -> None:
    """It makes room for what the shape says before it looks at the data."""
    tensor = {"name": "IN", "datatype": "FP32", "shape": [1, 2**40], "data": [1]}
    with command(add_model("identity", ECHO)) as served:
        served.wait_ready()
        before = served.triton
        with pytest.raises((HTTPException, OSError)):
            post(served, json.dumps({"inputs": [tensor]}).encode())
        wait_until(lambda: answers(served) and served.is_ready)
        assert served.triton != before


def test_a_shape_over_grpc_still_crashes_a_stub(add_model: Add) -> None:
    """The size in bytes overflows to 0, which fits no data; the stub makes the array unasked."""
    repository = add_model("identity", ECHO)
    config = repository / "identity" / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: [ 1 ]", "dims: [ -1 ]"))
    message = ModelInferRequest(model_name="identity", raw_input_contents=[b""])
    message.inputs.add(name="IN", datatype="FP32", shape=[1, 2**62])
    with command(repository) as served:
        served.wait_ready()
        server, before = served.triton, {stub.pid for stub in stubs.living(served.triton)}
        channel = grpc.insecure_channel(served.endpoints.grpc_url)
        with channel, pytest.raises(grpc.RpcError, match="not healthy"):
            GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=20)
        wait_until(lambda: answers(served) and served.is_ready)
        assert not before & {stub.pid for stub in stubs.living(served.triton)}
        assert served.triton == server


def test_classes_of_texts_still_crash_the_server(add_model: Add) -> None:
    """It divides by the size of an element. The campaign asks for no classes of texts."""
    repository = add_model("identity", ECHO)
    config = repository / "identity" / "config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_FP32", "TYPE_STRING"))
    tensor = {"name": "IN", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}
    outputs = [{"name": "OUT", "parameters": {"classification": 1}}]
    with command(repository) as served:
        served.wait_ready()
        before = served.triton
        with pytest.raises((HTTPException, OSError)):
            post(served, json.dumps({"inputs": [tensor], "outputs": outputs}).encode())
        wait_until(lambda: served.is_ready and served.triton != before)


def post(served: Command, body: bytes) -> None:
    url = f"http://{served.endpoints.http_url}/v2/models/identity/infer"
    urllib.request.urlopen(url, body, timeout=20).close()
