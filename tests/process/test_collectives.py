"""The collectives between real processes: sums, order, back-pressure, and an end to every wait."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_mp.model.errors import GroupAborted
from python_mp.rank.collectives import Communicator, connect
from tests.support.meeting_ranks import Program, Ranks, in_rank_order, values

# One element, odd numbers, whole slots and one more or less, several slots.
COUNTS = [1, 3, 16, 255, 384, 4095, 8193, 16384, 16385, 32768, 32769, 100_003]
SPECIAL = [0.0, -0.0, 1e-40, -1e-40, 1.0, 1.0039062, 3.3e38, 3.3e38, float("inf"), float("-inf")]
DTYPES = [torch.float32, torch.bfloat16]


def sum_a_slice(communicator: Communicator) -> None:
    """At an odd offset: its address is a multiple of its element's size and no more."""
    whole, once = (torch.arange(1001, dtype=torch.bfloat16) for _ in range(2))
    communicator.all_reduce(whole[1:1000])
    assert torch.equal(whole[1:1000], once[1:1000] * communicator.size)
    assert torch.equal(whole[[0, 1000]], once[[0, 1000]])


def sum_everything(communicator: Communicator, _stage: int, _link: Connection) -> int:
    rank, size = communicator.rank, communicator.size
    for dtype in DTYPES:
        for count in COUNTS:
            parts = [values(count, peer, count, dtype) for peer in range(size)]
            x = parts[rank].clone()
            assert communicator.all_reduce(x) is x
            assert torch.equal(x, in_rank_order(parts)), (dtype, count)
        special = torch.tensor(SPECIAL * 8, dtype=dtype)
        parts = [special.roll(peer) for peer in range(size)]
        x = communicator.all_reduce(parts[rank].clone())
        expected = in_rank_order(parts)
        assert expected.isnan().any()
        assert torch.equal(x.nan_to_num(7.0), expected.nan_to_num(7.0))
    done = communicator.operations()
    sum_a_slice(communicator)
    communicator.all_reduce(torch.empty(0))
    return done


@pytest.mark.parametrize("size", [2, 3])
def test_all_reduce_is_the_sum_in_rank_order_to_the_bit(tmp_path: Path, size: int) -> None:
    with Ranks(tmp_path, sum_everything, size) as group:
        assert group.results() == [len(DTYPES) * (len(COUNTS) + 1)] * size


SHAPES = [(1,), (5,), (3, 7), (2, 3, 4), (17, 1), (130, 501), (1, 70_001), (0, 4)]


def mixed(communicator: Communicator, stage: int, _link: Connection, width: int) -> None:
    rank, size, stages = communicator.rank, communicator.size, 3
    choice = random.Random(7)  # the same sequence on every rank
    for step in range(100):
        what = choice.choice(["reduce", "gather", "broadcast", "hand on"])
        shape, source = choice.choice(SHAPES), choice.randrange(size)
        dtype = choice.choice(DTYPES if what == "reduce" else [*DTYPES, torch.int64, torch.bool])
        parts = [values(3 * step + stage, peer, shape, dtype) for peer in range(size)]
        x = parts[rank].clone()
        if what == "reduce":
            assert torch.equal(communicator.all_reduce(x), in_rank_order(parts, width))
        elif what == "gather":
            assert torch.equal(communicator.all_gather(x), torch.cat(parts, dim=-1))
        elif what == "broadcast":
            assert torch.equal(communicator.broadcast(x, source), parts[source])
        else:
            if stage > 0:
                received = communicator.receive()
                assert received.dtype is dtype
                assert torch.equal(received, values(3 * step + stage - 1, rank, shape, dtype))
            if stage + 1 < stages:
                communicator.send(x)
                x.zero_()  # the message is a copy


CASES = [("shm", 4, 1), ("gloo", 2, 1), ("shm", 2, 3), ("shm", 2, 6), ("shm", 4, 6), ("gloo", 2, 3)]


@pytest.mark.parametrize(("kind", "size", "hosts"), CASES)
def test_mixed_operations_of_three_stages(tmp_path: Path, kind: str, size: int, hosts: int) -> None:
    """A host has a stage, a rank, or half of a stage."""
    width = min(size, 3 * size // hosts)
    with Ranks(tmp_path, partial(mixed, width=width), size, 3, kind, hosts) as group:
        group.results()


def sum_by_hosts(communicator: Communicator, _stage: int, _link: Connection) -> None:
    assert type(communicator).__name__ == "OverHosts"
    for dtype, count in itertools.product(DTYPES, COUNTS):
        parts = [values(count, peer, count, dtype) for peer in range(communicator.size)]
        x = communicator.all_reduce(parts[communicator.rank].clone())
        assert torch.equal(x, in_rank_order(parts, width=2))


def test_three_hosts_sum_in_their_order_to_the_bit(tmp_path: Path) -> None:
    with Ranks(tmp_path, sum_by_hosts, 6, hosts=3) as group:
        group.results()


def reduce_once(communicator: Communicator, _stage: int, _link: Connection) -> tuple[str, Any]:
    x = communicator.all_reduce(values(1, communicator.rank, 10_001, torch.bfloat16))
    return type(communicator).__name__, x.tolist()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("auto", "SharedMemory"), ("gloo", "Distributed"), ("unbuilt", "Distributed")],
)
def test_every_kind_sums_in_float32(tmp_path: Path, kind: str, name: str) -> None:
    """And auto takes gloo where the extension is not built."""
    wanted = in_rank_order([values(1, rank, 10_001, torch.bfloat16) for rank in range(3)])
    with Ranks(tmp_path, reduce_once, 3, kind=kind) as group:
        assert group.results() == [(name, wanted.tolist())] * 3


def messages() -> Iterator[Tensor]:
    """The first two are more than a link holds."""
    for number in range(2):
        yield torch.full((16 << 20,), number, dtype=torch.uint8)
    for number in range(2, 100):
        yield torch.full((number, 2), number, dtype=torch.int32)
    yield torch.arange(40 << 20, dtype=torch.int32)
    yield torch.tensor(3.5)


def hand_over(communicator: Communicator, stage: int, link: Connection) -> None:
    if stage == 0:
        for number, message in enumerate(messages()):
            communicator.send(message)
            if number == 1:
                link.send(("two under way", None))
        link.send(("sent", None))
    else:
        assert link.recv() == "go"
        for message in messages():
            received = communicator.receive()
            assert received.shape == message.shape
            assert received.dtype == message.dtype
            assert torch.equal(received, message)


@pytest.mark.parametrize(("kind", "hosts"), [("shm", 1), ("gloo", 1), ("shm", 2)])
def test_messages_keep_their_order_and_wait_for_their_receiver(
    tmp_path: Path, kind: str, hosts: int
) -> None:
    with Ranks(tmp_path, hand_over, 1, 2, kind, hosts) as group:
        group.hears(0, "two under way")  # A link without a reader must not take everything.
        group.links[1].send("go")
        assert group.get(0)[0] == "sent"
        group.results()


# Each of these waits for ever for peers that never call.
WAITS: dict[str, tuple[int, Program]] = {
    "all_reduce": (0, lambda c: c.all_reduce(torch.ones(8))),
    "big all_reduce": (0, lambda c: c.all_reduce(torch.ones(200_000))),
    "all_gather": (0, lambda c: c.all_gather(torch.ones(8))),
    "broadcast": (0, lambda c: c.broadcast(torch.ones(8), source=1)),
    "receive": (1, lambda c: c.receive()),
    "send": (0, lambda c: [c.send(torch.ones(4 << 20)) for _ in range(5)]),
}


def wait_alone(communicator: Communicator, stage: int, link: Connection) -> None:
    where, call = WAITS[link.recv()]
    if stage == where and communicator.rank == 0:
        link.send(("waiting", None))
        call(communicator)


@pytest.mark.parametrize("what", WAITS)
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_group_that_ends_ends_the_wait(tmp_path: Path, what: str, hosts: int) -> None:
    with Ranks(tmp_path, wait_alone, 2, 2, hosts=hosts) as group:
        for link in group.links:
            link.send(what)
        waiter = 2 * WAITS[what][0]
        group.hears(waiter, "waiting")
        group.abort()
        assert group.raised(waiter)[0] is GroupAborted


@pytest.mark.parametrize("ends", [True, False])
def test_a_peer_on_another_host_that_dies_ends_the_wait(tmp_path: Path, ends: bool) -> None:
    """By the parent's word, which knows more of it; where it says none, by our own."""
    with Ranks(tmp_path, wait_alone, 2, hosts=2, hang_seconds=60 if ends else 1) as group:
        group.links[0].send("all_reduce")
        group.hears(0, "waiting")
        group.processes[1].kill()
        if ends:
            assert not wait([group.links[0]], 0.2)
            group.abort()
        error, text = group.raised(0)
        assert error is (GroupAborted if ends else ConnectionError)
        assert ends or "rank 1, on another host, is gone" in text


def differ(communicator: Communicator, _stage: int, link: Connection) -> None:
    if communicator.rank == 0:
        communicator.all_reduce(torch.ones(10))
    elif link.recv() == "longer":
        communicator.all_reduce(torch.ones(11))
    else:
        communicator.all_gather(torch.ones(10))


@pytest.mark.parametrize("how", ["longer", "other"])
@pytest.mark.parametrize("hosts", [1, 2])
def test_ranks_out_of_step_are_told(tmp_path: Path, how: str, hosts: int) -> None:
    """On another host it may be that the connection ends before all of it was read."""
    with Ranks(tmp_path, differ, 2, hosts=hosts, hang_seconds=1) as group:
        group.links[1].send(how)
        found = [group.raised(rank) for rank in range(2)]
        told = [error is RuntimeError and "out of step" in text for error, text in found]
        assert all(told) or (hosts == 2 and any(told))


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    (region := tmp_path / "region").touch()
    one_of_two = connect("shm", tensor_rank=0, tensor_size=2, region=str(region))
    with pytest.raises(TypeError, match="float64"):
        one_of_two.all_reduce(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="contiguous"):
        one_of_two.all_reduce(torch.ones(3, 4).T)
    one_of_two.close()
    with pytest.raises(ValueError, match="closed"):
        one_of_two.all_reduce(torch.ones(3))
