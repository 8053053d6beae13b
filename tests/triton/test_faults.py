"""Signals to ranks under load, and every end that a server can have."""

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from server.endpoints import Endpoints
from server.process.installation import PROJECT
from server.process.launch import TritonServer
from server.process.run import SEGMENTS
from tests.support.harness import children, rank_processes, until
from tests.support.serving import Serve, processes_of
from tests.triton import repository
from tests.triton.calls import (
    BOUND,
    Array,
    Client,
    in_parallel,
    plain_ranker,
    reference,
    settled,
)
from tests.triton.test_server import Command, command

CLIENTS, REQUESTS = 8, 100
RECOVERY_SECONDS = 5.0
HANG_SECONDS = 10.0
DRAIN_SECONDS, KILL_SECONDS = 5.0, 2.0
IsRight = Callable[[Client, int], bool]


@pytest.fixture(scope="module")
def harmed(serve: Serve) -> Iterator[TritonServer]:
    """A server of these tests' own."""
    with serve(PROJECT / "model_repository") as ready:
        yield ready


def rank_pid(server: TritonServer, model: str, rank: int) -> int:
    for stub in children(server.pid):
        pid = rank_processes(stub).get((0, rank))
        if pid and f"model_repository/{model}/" in Path(f"/proc/{stub}/cmdline").read_text():
            return pid
    raise AssertionError(f"{model} has no rank {rank}")


@cache
def short() -> list[int]:
    """The shorter half of the texts, to be quick."""
    return sorted(range(200), key=lambda n: len(reference().texts[n]))[:100]


def embeds(client: Client, number: int) -> bool:
    """Whether the server's answer for some text is right."""
    which = short()[number % 100]
    return reference().cosine([which], client.embed([reference().texts[which]])) >= BOUND["float32"]


@cache
def scored(number: int) -> tuple[Array, Array]:
    features = np.random.default_rng(number).standard_normal((16, 256), np.float32)
    return features, plain_ranker(features)


def scores(client: Client, number: int) -> bool:
    features, expected = scored(number % 20)
    return np.allclose(client.score(features), expected, rtol=0, atol=2e-5)


class Load:
    """8 clients that send 100 requests each, and count what is right."""

    def __init__(self, server: TritonServer, is_right: IsRight) -> None:
        self._server = server
        self._is_right = is_right
        self._answered = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)
        self.right: list[int] = []
        self._thread.start()

    def wait_for(self, answers: int) -> None:
        for _ in range(answers):
            assert self._answered.acquire(timeout=60)

    def join(self) -> int:
        """The number of right answers; a request that fails is none."""
        self._thread.join()
        return sum(self.right)

    def _run(self) -> None:
        self.right = in_parallel(CLIENTS, self._send)

    def _send(self, number: int) -> int:
        right, order = 0, random.Random(number)
        with Client(self._server.endpoints, ("grpc", "http")[number % 2]) as client:
            for _ in range(REQUESTS):
                right += self._is_right(client, order.randrange(200))
                self._answered.release()
        return right


@pytest.mark.parametrize(
    ("model", "is_right", "rank", "number", "times"),
    [
        ("embed_encoder", embeds, 0, signal.SIGKILL, 2),
        ("embed_encoder", embeds, 1, signal.SIGSEGV, 1),
        ("embed_encoder", embeds, 1, signal.SIGSTOP, 1),
        ("ranker", scores, 1, signal.SIGKILL, 1),
    ],
)
def test_a_signal_to_a_rank_fails_no_request(
    harmed: TritonServer,
    model: str,
    is_right: IsRight,
    rank: int,
    number: signal.Signals,
    times: int,
) -> None:
    before, stubs = settled(harmed.endpoints), children(harmed.pid)
    is_right_once(harmed, is_right)
    load = Load(harmed, is_right)
    load.wait_for(CLIENTS * REQUESTS // 4)
    for _ in range(times):  # The second time as soon as the next generation answers.
        os.kill(rank_pid(harmed, model, rank), number)
        signalled = time.monotonic()
        is_right_once(harmed, is_right)
        recovery = time.monotonic() - signalled
        noticed = HANG_SECONDS if number == signal.SIGSTOP else 0.0
        assert recovery < noticed + RECOVERY_SECONDS
    assert load.join() == CLIENTS * REQUESTS

    restarts = before.total("restarts_total", model=model) + times
    after = settled(
        harmed.endpoints,
        lambda now: (
            now.total("restarts_total", model=model) == restarts
            and now.total("ranks_alive", model=model) == 2
        ),
    )
    assert after.total("generation", model=model) == restarts + 1
    assert children(harmed.pid) == stubs


def is_right_once(server: TritonServer, is_right: IsRight) -> None:
    with Client(server.endpoints) as client:
        assert is_right(client, 0)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """One model of the ranker's kind."""
    folder = tmp_path / "repository"
    repository.copy(folder, "ranker")
    return folder


def assert_gone(run: tuple[str, Path], seconds: float) -> None:
    """Neither process nor shared memory of the run, that soon."""
    prefix, folder = run
    until(lambda: not processes_of(folder) and not [*SEGMENTS.glob(f"{prefix}*")], seconds)


@pytest.mark.parametrize(
    ("number", "seconds"),
    [
        (signal.SIGTERM, DRAIN_SECONDS),
        (signal.SIGINT, DRAIN_SECONDS),
        (signal.SIGKILL, KILL_SECONDS),
    ],
)
def test_the_end_of_tritonserver_ends_everything(
    models: Path,
    check_left: Callable[[tuple[str, Path]], None],
    number: signal.Signals,
    seconds: float,
) -> None:
    server = TritonServer(models, endpoints=Endpoints.free())
    server.start()
    server.wait_ready()
    processes = processes_of(server.run.folder).values()
    assert sum("python_mp.rank.forkserver" in p for p in processes) == 3, "with its two ranks"
    is_right_once(server, scores)
    began = time.monotonic()
    os.kill(server.pid, number)
    # Waited for at once, as by its watcher: stubs take a zombie for a living tritonserver.
    assert server.wait() == (-number if number == signal.SIGKILL else 0)
    check_left((server.run.prefix, server.run.folder))
    assert time.monotonic() - began < seconds


def test_a_drain_answers_what_is_in_flight(models: Path) -> None:
    """Each client gets right answers up to a moment, and then only that nobody serves any more."""
    server = TritonServer(models, endpoints=Endpoints.free())
    server.start()
    server.wait_ready()
    busy = threading.Semaphore(0)
    endings: list[str] = []

    def send(_: int) -> None:
        with Client(server.endpoints) as client:
            try:
                for number in itertools.count():
                    assert scores(client, number)
                    busy.release()
            except InferenceServerException as error:
                endings.append(error.status())

    clients = threading.Thread(target=in_parallel, args=[CLIENTS, send])
    clients.start()
    for _ in range(CLIENTS * 5):
        assert busy.acquire(timeout=30)
    began = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 0
    assert time.monotonic() - began < DRAIN_SECONDS
    clients.join()
    assert len(endings) == CLIENTS
    assert set(endings) <= {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND"}, "both are Triton's"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_command_ends_everything(models: Path, number: signal.Signals) -> None:
    """Ctrl-C drains; after kill -9 of what started it, tritonserver drains by itself."""
    with command(models) as started:
        started.wait_ready()
        run = started.run
        assert ranks_score(started)
        started.process.send_signal(number)
        assert_gone(run, DRAIN_SECONDS)
        assert started.end()[0] == (-number if number == signal.SIGKILL else 0)


def ranks_score(started: Command) -> bool:
    with Client(started.endpoints) as client:
        return scores(client, 1)
