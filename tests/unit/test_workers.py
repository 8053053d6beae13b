"""Processes that a build gives work to."""

import os
import signal

import pytest

from build_scripts import workers
from build_scripts.errors import BuildError


def test_a_killed_worker_is_one_sentence() -> None:
    with pytest.raises(BuildError, match="memory"), workers.pool(1) as pool:
        pool.submit(signal.raise_signal, signal.SIGKILL).result()


def test_work_is_done_elsewhere() -> None:
    with workers.pool(1) as pool:
        assert pool.submit(os.getppid).result() == os.getpid()
