"""Ranks on hosts of their own meet as with flat gloo, over any link, until their group ends."""

from __future__ import annotations

from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest
import torch

from python_mp.model.errors import GroupAborted
from python_mp.rank.collectives import Communicator
from tests.hosts.conftest import Hosts
from tests.support.meeting_ranks import Ranks, values

COUNTS = [1, 12_288, 100_003]


def sums(communicator: Communicator, _stage: int, _link: Connection) -> list[list[float]]:
    dtypes = torch.float32, torch.bfloat16
    parts = [values(n, communicator.rank, n, dtype) for n in COUNTS for dtype in dtypes]
    return [communicator.all_reduce(part).tolist() for part in parts]


def test_two_by_two_ranks_sum_as_flat_gloo(hosts: Hosts, tmp_path: Path) -> None:
    """Also where packets are lost and late: within rounding, and the same bits on every rank."""
    found = {}
    with hosts(2) as on:
        for kind in ("shm", "gloo"):
            (folder := tmp_path / kind).mkdir()
            with Ranks(folder, sums, 4, kind=kind, on=on) as group:
                first, *others = group.results()
            assert all(each == first for each in others)
            found[kind] = first
            on[1].lose(0.05)
            on[1].delay(0.005)
    for ours, theirs in zip(found["shm"], found["gloo"], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=8e-3, atol=1e-5)


def hand_over_or_sum(communicator: Communicator, stage: int, link: Connection) -> None:
    """Again and again, each time that the test says so."""
    while link.recv() == "go":
        if communicator.size > 1:
            communicator.all_reduce(torch.ones(100_000))
        elif stage:
            communicator.receive()
        else:
            communicator.send(torch.ones(100_000))
        link.send(("met", None))


@pytest.mark.parametrize(("size", "stages"), [(2, 1), (1, 2)])
def test_a_cut_link_only_delays_until_the_group_is_ended(
    hosts: Hosts, tmp_path: Path, size: int, stages: int
) -> None:
    with hosts(2) as on, Ranks(tmp_path, hand_over_or_sum, size, stages, on=on) as group:
        for cut in (False, True):
            for link in group.links:
                link.send("go")
            if cut:
                assert not wait([group.links[1]], 0.3)
                on[1].mend()
            assert [group.get(rank)[0] for rank in range(2)] == ["met"] * 2
            on[1].cut()
        group.links[1].send("go")
        assert not wait([group.links[1]], 0.3)
        group.abort()
        assert group.raised(1)[0] is GroupAborted
