"""Thousands of bad requests: each is refused or served, none crashes, shows or costs anything.

They are made by hypothesis, always the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from server.process.launch import TritonServer
from tests.support import bad_json, bad_messages
from tests.support.bad_json import GENERATED, JUNK, HttpCall
from tests.support.calls import settled
from tests.support.sender import Sender, memory

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
    before = memory(server)
    yield sender
    sender.good()
    sender.close()
    after = memory(server)
    assert server.returncode is None
    assert before.keys() == after.keys()
    assert sum(after.values()) - sum(before.values()) < MEMORY_MIB, (before, after)
    metrics = settled(server.endpoints)
    for model in ("embed_encoder", "ranker", "classifier"):
        assert metrics.total("restarts_total", model=model) == 0


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
    settings(GENERATED, max_examples=max(rounds // part, 4))(test)()
    assert sender.sent - already >= least // part // 2, sender.answers


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
    message = bad_messages.valid_message("embed")
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
