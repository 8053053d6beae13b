"""What replicas tell each other comes whole, whatever its size, or not at all."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from python_mp.front.peers.guests import Guests, PeerAnswer
from python_mp.front.peers.helper import _passport
from python_mp.front.peers.line import Line
from python_mp.front.schedule import travelling
from python_mp.machine.net import Net
from python_mp.model.errors import TooLarge
from python_mp.wire.message import MAX_MESSAGE, Kind, Message
from tests.support.stepping import Bench


@contextmanager
def lines() -> Iterator[tuple[Line, Line]]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left, right = (Line(each, 1.0) for each in pair)
    try:
        yield left, right
    finally:
        left.close()
        right.close()


letters = st.characters(exclude_categories=["Cs"])
texts = st.builds(
    lambda letter, count: letter * count, letters, st.sampled_from([0, 1, 1000, 1030, 70_000])
)
tensors = st.dictionaries(
    st.sampled_from(["X", "Y"]), st.sampled_from([0, 1, 70_000]).map(lambda n: np.arange(n))
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(Kind), texts, tensors)
def test_any_size_comes_whole(kind: Kind, text: str, sent: dict[str, Any]) -> None:
    with lines() as (left, right):
        left.send(kind, 7, sent, text)
        received = right.receive()
        assert received
        message, got = received
        assert (message.kind, message.batch, message.text) == (kind, 7, text)
        assert got.keys() == sent.keys()
        assert all(np.array_equal(got[name], sent[name]) for name in sent)


def test_what_no_message_can_describe_is_not_sent() -> None:
    names = {"X" * 500 + str(n): np.zeros(1) for n in range(MAX_MESSAGE // 500)}
    with lines() as (left, right):
        with pytest.raises(OSError, match="Message too long"):
            left.send(Kind.DONE, 1, names)
        left.send(Kind.PULSE)
        received = right.receive()
        assert received
        assert received[0].kind is Kind.PULSE


LARGE: dict[str, Any] = {
    "logit_bias": json.dumps(dict.fromkeys(range(1000), -12.345678901234567)),
    "stop_token_ids": json.dumps(list(range(1000))),
}


def test_the_largest_stream_travels(tmp_path: Path) -> None:
    """There with its prompt and settings, and back with the largest part."""
    home = Bench(tmp_path, blocks=10_000, context=120_000)
    home.ask(range(100_000), max_tokens=2000, logprobs=20, **LARGE)
    stream = home.schedule.lend(lambda _: True)
    assert stream
    stream.ends_by = stream.arrived + 1000.0
    with lines() as (left, right):
        inputs, said = stream.described()
        left.send(Kind.FORWARD, 0, inputs, _passport(stream, said))
        message, got = right.receive() or pytest.fail("it has hung up")
        answer = PeerAnswer(right, 0)
        guest = home.schedule.guest(got, json.loads(message.text), answer)
        assert np.array_equal(guest.ids[:100_000], stream.ids[:100_000])
        assert (guest.settings, guest.stop_ids) == (stream.settings, stream.stop_ids)
        assert abs(guest.ends_by - stream.ends_by) < 100.0, "the client's own time-out goes along"
        size = 2000
        part = {
            "USAGE": np.zeros((1, 3), np.int32),
            "OUTPUT_IDS": np.arange(size, dtype=np.int32)[None],
            "LOGPROBS": np.full((1, size), -1.2345678, np.float32),
            "TOP_IDS": np.full((1, size, 20), 12_345, np.int32),
            "TOP_LOGPROBS": np.full((1, size, 20), -11.2345678, np.float32),
        }
        answer.part(part)
        message, _ = left.receive() or pytest.fail("it has hung up")
        tokens, _ = travelling.tokens(message.text)
        assert [token.id for token in tokens] == list(range(size))
        assert np.array_equal(tokens[-1].top_logprobs, part["TOP_LOGPROBS"][0, -1])
    home.schedule.settle(stream)
    home.close()


@pytest.mark.parametrize("said", ["{", "{}", '{"prompt": "x"}', "[]", "null"])
def test_what_cannot_be_read_goes_home_alone(tmp_path: Path, said: str) -> None:
    """The others that its home has here are not lost for it."""
    bench = Bench(tmp_path)
    guests = Guests(0, tmp_path, bench.schedule.guest, lambda _: None, None, Net())  # type: ignore[arg-type]
    with lines() as (left, right):
        message = Message(Kind.FORWARD, batch=3, text=said)
        guests._take_in(PeerAnswer(right, 3), message, {"INPUT_IDS": np.array([[9]], np.int32)})
        received = left.receive()
        assert received
        assert received[0].kind is Kind.REFUSED
        assert json.loads(received[0].text)["error"] == TooLarge.__name__
    guests.stop()
    bench.close()
