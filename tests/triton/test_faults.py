"""What a server with ranks answers, and leaves, at its end."""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from server.endpoints import Endpoints
from server.process.launch import TritonServer
from server.process.run import SEGMENTS
from tests.support import repository
from tests.support.calls import (
    Client,
    in_background,
    in_parallel,
    plain_ranker,
)
from tests.support.command import command
from tests.support.processes import until
from tests.support.serving import processes_of

CLIENTS = 8
GONE_SECONDS = 15.0
CheckLeft = Callable[[tuple[str, Path]], None]


@pytest.fixture
def ranker(tmp_path: Path) -> Iterator[TritonServer]:
    repository.copy(tmp_path / "repository", "ranker")
    server = TritonServer(tmp_path / "repository", endpoints=Endpoints.free())
    server.start()
    server.wait_ready()
    processes = processes_of(server.run.folder).values()
    assert sum("python_mp.rank.forkserver" in p for p in processes) == 3, "with its two ranks"
    yield server
    if server.returncode is None:
        os.kill(server.pid, signal.SIGKILL)


def scores(client: Client, number: int) -> bool:
    features = np.random.default_rng(number).standard_normal((16, 256), np.float32)
    return np.allclose(client.score(features), plain_ranker(features), rtol=0, atol=2e-5)


def test_a_drain_answers_what_is_in_flight(ranker: TritonServer, check_left: CheckLeft) -> None:
    """Each client gets right answers up to a moment, and then only that nobody serves any more."""
    busy = threading.Semaphore(0)

    def send(_: int) -> str:
        with Client(ranker.endpoints) as client:
            try:
                for number in itertools.count():
                    assert scores(client, number)
                    busy.release()
            except InferenceServerException as error:
                return str(error.status())
        raise AssertionError

    clients = in_background(lambda: in_parallel(CLIENTS, send))
    for _ in range(CLIENTS * 5):
        assert busy.acquire(timeout=30)
    os.kill(ranker.pid, signal.SIGTERM)
    assert ranker.wait() == 0
    assert set(clients.result(60)) <= {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND"}
    check_left((ranker.run.prefix, ranker.run.folder))


def test_the_death_of_tritonserver_ends_everything(
    ranker: TritonServer, check_left: CheckLeft
) -> None:
    os.kill(ranker.pid, signal.SIGKILL)
    # Waited for at once, as by its watcher: stubs take a zombie for a living tritonserver.
    assert ranker.wait() == -signal.SIGKILL
    check_left((ranker.run.prefix, ranker.run.folder))


def test_the_death_of_the_command_ends_everything(tmp_path: Path) -> None:
    """tritonserver drains by itself."""
    repository.copy(tmp_path / "repository", "ranker")
    with command(tmp_path / "repository") as started:
        started.wait_ready()
        prefix, folder = started.run
        with Client(started.endpoints) as client:
            assert scores(client, 1)
        started.process.send_signal(signal.SIGKILL)
        until(lambda: not processes_of(folder) and not [*SEGMENTS.glob(f"{prefix}*")], GONE_SECONDS)
