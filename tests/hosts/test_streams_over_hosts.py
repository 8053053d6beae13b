"""A decoder over two hosts, of which one dies: its streams go on at a third one, as transformers
would have gone on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.test_decoder_served import LIMIT, ask_all, ties
from tests.hosts.conftest import Hosts
from tests.support import decoding
from tests.support.agents_on_hosts import connected
from tests.support.processes import until
from tests.support.replicas import counted, served


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("tp", "pp"),
    [(1, 2), *(pytest.param(*each, marks=pytest.mark.campaign) for each in [(2, 1), (2, 2)])],
)
def test_streams_go_on_where_a_host_died(hosts: Hosts, tmp_path: Path, tp: int, pp: int) -> None:
    every = decoding.asked(decoding.model("llama"), 10, 60, 30)
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "hosts": 2}
    config = decoding.served_config(tmp_path / "llama", "llama", kv_cache_blocks=20, **sizes)
    with hosts(3) as (a, b, c), connected(a, [b, c], tmp_path), served(config, tmp_path) as replica:
        answers = ask_all(replica, every)
        until(lambda: sum(len(answer.ids) for answer in answers) > 60, LIMIT)
        b.kill()
        assert sum(map(ties, answers, every)) <= 2
        assert counted(replica, "generation") == [2]
