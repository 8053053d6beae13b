"""A replica whose later ranks stand on other hosts: here other processes, over loopback."""

import logging
from pathlib import Path

import pytest

from python_mp.model.config import ModelConfig
from tests.support.configs import echo_config
from tests.support.other_hosts import hosts
from tests.support.replicas import ask, served, values

ON_TWO = {"pipeline_parallel_size": 2, "hosts": 2, "passive": 0}


def echo(tmp_path: Path, **more: object) -> ModelConfig:
    (tmp_path / "echo" / "1").mkdir(parents=True)
    return echo_config(tmp_path / "echo", **{**ON_TWO, **more})


def test_a_stage_on_another_host_answers(tmp_path: Path) -> None:
    with hosts(tmp_path, "b"), served(echo(tmp_path), tmp_path) as replica:
        asked = [ask(replica, n, n + 1) for n in range(50)]
        assert values(asked) == [[n, n + 1] for n in range(50)]
