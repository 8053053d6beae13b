"""Calls of the front that fail once: what they leave behind. tests/osfaults tries all of them."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from python_mp.channel import Connection
from python_mp.front import group as group_module
from python_mp.front.line import Line
from tests.support.descriptors import ours
from tests.support.harness import Served, ask, echo_config, pids, served, until, values

DEATHS = 5


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Served]:
    config = echo_config(tmp_path, tensor_parallel_size=2, hang_seconds=60)
    with served(config, tmp_path) as replica:
        yield replica


def once(call: Callable[..., Any]) -> Callable[..., Any]:
    """Fails the first time."""
    errors = [errno.ENOMEM]

    def fails(*args: Any, **more: Any) -> Any:
        if errors:
            raise OSError(errors.pop(), "no memory")
        return call(*args, **more)

    return fails


def test_a_batch_that_a_rank_cannot_be_told_of_is_replayed_at_once(
    two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the watchdog notices that no rank gets on."""
    monkeypatch.setattr(Connection, "send", once(Connection.send))
    assert values([ask(two, 1, 2)]) == [[1, 2]]


def test_an_answer_that_was_not_heard_is_not_taken_for_the_next_one(
    two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that starts ranks is asked how one ended: here, while there is no memory."""
    nursery = two.replica._keeper._nursery
    assert nursery is not None
    monkeypatch.setattr(nursery, "_socket", Deaf(nursery._socket))
    os.kill(pids(two)[0], signal.SIGKILL)
    until(partial(serves, two, generation=2))
    assert values([ask(two, 3)]) == [[3]]


class Deaf:
    """A socket that hears nothing at first."""

    def __init__(self, heard: socket.socket) -> None:
        self._heard = heard
        self.recv = once(heard.recv)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._heard, name)


def test_a_group_that_ends_in_trouble_leaves_no_descriptor(
    two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(pids(two)[0], signal.SIGKILL)
    until(partial(serves, two, generation=2))
    before = ours()["anon_inode:[pidfd]"]
    for death in range(DEATHS):
        with monkeypatch.context() as patch:
            patch.setattr(group_module, "wait_all", once(group_module.wait_all))
            os.kill(pids(two)[0], signal.SIGKILL)
            until(partial(serves, two, generation=death + 3))
    # Of them alone: pytest keeps what was logged, and with its frames the memory of groups.
    until(lambda: ours()["anon_inode:[pidfd]"] <= before)


def serves(replica: Served, generation: int) -> bool:
    return replica.replica._keeper._generation >= generation and replica.replica.serves


def test_a_connection_counts_as_closed_though_close_fails() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        connection = Line(ours, 1.0)
        connection._socket = Unclosable(ours)  # type: ignore[assignment]
        connection.close()


class Unclosable:
    def __init__(self, kept: socket.socket) -> None:
        self._kept = kept

    def close(self) -> None:
        raise OSError(errno.EIO, "input/output error")
