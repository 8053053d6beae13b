"""Thousands of bad requests: each is refused or served, none crashes, shows or costs anything.

They are made by hypothesis, always the same ones; CAMPAIGN_SEED=N in the environment makes others,
CAMPAIGN_TIMES=N makes N times as many.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any

import grpc
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from server.process.launch import TritonServer
from tests.support import bad_json, bad_messages, python_models
from tests.support.bad_json import GENERATED, JUNK, HttpCall
from tests.support.calls import settled
from tests.support.command import Command, command
from tests.support.processes import until
from tests.support.python_models import CONFIG
from tests.support.sender import Health, Sender

SEED = os.environ.get("CAMPAIGN_SEED")
TIMES = int(os.environ.get("CAMPAIGN_TIMES", "1"))
MEMORY_MIB = 300
# What makes the requests, what sends one, how many rounds of about 40 there are, requests at least.
KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Sender, Any], None], int, int]] = {
    "json": (bad_json.json_calls(), Sender.http, 112, 3600),
    "binary": (bad_json.binary_calls(), Sender.http, 76, 1900),
    "message": (bad_messages.calls(), Sender.grpc, 138, 4000),
    "stream": (st.lists(bad_messages.messages(), max_size=9), Sender.stream, 12, 500),
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
@pytest.mark.parametrize(
    "part", [8, pytest.param(1, marks=pytest.mark.campaign)], ids=["short", "long"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_each_is_refused_or_served(sender: Sender, kind: str, part: int) -> None:
    requests, send, rounds, least = KINDS[kind]
    already = sender.sent

    def one_round(requests: list[Any]) -> None:
        for request in requests:
            send(sender, request)
        sender.good()

    test = given(requests=st.lists(requests, min_size=20, max_size=60))(one_round)
    test = test if SEED is None else seed(int(SEED))(test)
    examples = max(rounds * TIMES // part, 4)
    settings(GENERATED, max_examples=examples, derandomize=SEED is None)(test)()
    assert sender.sent - already >= least * TIMES // part // 2, sender.answers


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("port", ["http", "grpc", "metrics"])
def test_junk_on_a_socket(sender: Sender, server: TritonServer, port: str, junk: str) -> None:
    """The connection may be closed without a word: who sends this does not speak the protocol."""
    address = server.endpoints.contact, getattr(server.endpoints, port)
    bad_json.send_junk(address, junk)
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


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    folder = tmp_path_factory.mktemp("crashing")
    models = {"identity": ("FP32", 1), "wide": ("FP32", -1), "text": ("STRING", 1)}
    for name, of in models.items():
        python_models.add(folder, name, config=CONFIG.format(*of))
    with command(folder) as served:
        served.wait_ready()
        yield served


@pytest.mark.parametrize(
    ("model", "tensor", "outputs"),
    [
        ("identity", {"datatype": "FP32", "shape": [1, 2**40], "data": [1]}, []),
        ("text", {"datatype": "BYTES", "shape": [1, 1], "data": ["a"]}, [{"classification": 1}]),
    ],
    ids=["a shape in JSON", "classes of texts"],
)
def test_the_server_still_crashes(
    crashing: Command, model: str, tensor: dict[str, Any], outputs: list[Any]
) -> None:
    """It makes room for what the shape says before it looks at the data; it divides by the size of
    an element. The campaign asks for no classes of texts."""
    before = crashing.triton
    asked = [{"name": "OUT", "parameters": each} for each in outputs]
    body = json.dumps({"inputs": [tensor | {"name": "IN"}], "outputs": asked}).encode()
    url = f"http://{crashing.endpoints.http_url}/v2/models/{model}/infer"
    with pytest.raises((HTTPException, OSError)):
        urllib.request.urlopen(url, body, timeout=20).close()
    until(lambda: crashing.answers() and crashing.is_ready, 60)
    assert crashing.triton != before


def test_a_shape_over_grpc_still_crashes_a_stub(crashing: Command) -> None:
    """The size in bytes overflows to 0, which fits no data; the stub makes the array unasked."""
    message = ModelInferRequest(model_name="wide", raw_input_contents=[b""])
    message.inputs.add(name="IN", datatype="FP32", shape=[1, 2**62])
    server, before = crashing.triton, set(crashing.stubs("wide").values())
    channel = grpc.insecure_channel(crashing.endpoints.grpc_url)
    with channel, pytest.raises(grpc.RpcError, match="not healthy"):
        GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=20)
    until(lambda: crashing.answers(model="wide") and crashing.is_ready, 60)
    assert not before & set(crashing.stubs("wide").values())
    assert crashing.triton == server
