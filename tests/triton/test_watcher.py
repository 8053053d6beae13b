"""Stubs and tritonserver: whatever is killed, the models answer again and the house is clean, and
the watcher's metrics say what happened."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from python_mp.rank.engines.echo import SLEEP
from tests.support import repository
from tests.support.calls import Client, in_background, in_parallel, scrape
from tests.support.command import Command, assert_private, command
from tests.support.processes import until
from tests.support.python_models import ECHO
from tests.triton.conftest import AddModel

BACK_SECONDS = 30.0  # mostly 1.6 and 0.4; clients.chaos is what measures
CLIENTS = 8
EXIT_TIMEOUT = "--exit-timeout-secs=3"  # so long what a dead stub leaves may take to end
CheckLeft = Callable[..., None]
# Dies in the middle of a request for 13, and at the start while there is a file `broken`.
MORTAL = """
import os, pathlib
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        if pathlib.Path({broken!r}).exists():
            os._exit(1)

    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(r, "IN").as_numpy() for r in requests]
        if any((value == 13).any() for value in values):
            os._exit(1)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]) for value in values]
"""

# The same server, in which these calls fail, but for the first time, which is of the start.
FAULTY = """
import itertools, sys
from server import __main__, control
from server.process import launch
from server.watch import repository

def fail(place, name):
    call, times = getattr(place, name), itertools.count()
    def fails(*args, **more):
        if next(times) in (1, 2, 3):
            raise OSError(24, "Too many open files")
        return call(*args, **more)
    setattr(place, name, fails)

fail(control.IndexLine, "ask")
fail(launch.Log, "feed")
fail(repository, "states")
sys.exit(__main__.main())
"""
LOOPS = ("the probe of tritonserver", "the log's reader", "the repository's watch")


@pytest.fixture
def mortal(add_model: AddModel, tmp_path: Path) -> Path:
    return add_model("identity", MORTAL.format(broken=str(tmp_path / "broken")))


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_a_dead_stub_is_replaced(mortal: Path, how: str, check_left: CheckLeft) -> None:
    """Ready says so at once; nothing of the dead one stays; the drain is not held up."""
    with command(mortal, EXIT_TIMEOUT) as served:
        served.wait_ready()
        run, before = served.run, served.segments()
        if how == "idle":
            os.kill(served.stubs("identity")["identity_0_0"], signal.SIGKILL)
        else:  # Triton takes a second to see it
            in_background(lambda: served.answers(13))
        until(lambda: "stub died" in served.health()[1]["reason"])
        assert served.metric("model_ready", model="identity") == 0
        until(lambda: served.answers() and served.is_ready, BACK_SECONDS)
        until(lambda: served.metric("model_restarts_total", model="identity") == 1)
        assert served.metric("model_ready", model="identity") == 1
        until(lambda: len(served.segments()) == len(before), BACK_SECONDS)
        assert served.segments() & before == {f"{run[0]}lock"}
        assert_private(run[0])
        assert served.end(signal.SIGTERM)[0] == 0, served.output
    check_left(run)


def test_the_other_replica_serves_and_then_all_are_new(mortal: Path) -> None:
    """Triton would keep the old ones for ever, because one of them died with a request in hand."""
    config = mortal / "identity" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))
    with command(mortal, "--exit-timeout-secs=1") as served:
        served.wait_ready()
        before = set(served.stubs("identity").values())
        with pytest.raises(OSError, match="HTTP Error 500"):
            served.infer(13)
        seen = set()

        def all_are_new() -> bool:
            seen.add(served.health()[0])
            now = set(served.stubs("identity").values())
            return len(now) == len(before) and not now & before

        until(all_are_new, BACK_SECONDS)
        assert seen == {200}
        assert all(served.answers() for _ in range(10))


def test_a_stub_that_dies_at_every_load(mortal: Path, tmp_path: Path) -> None:
    with command(mortal) as served:
        served.wait_ready()
        (tmp_path / "broken").touch()
        os.kill(served.stubs("identity")["identity_0_0"], signal.SIGKILL)
        served.wait_for("next try in 1 s")
        assert served.health()[0] == 503
        assert not served.model("identity")["ready"]
        (tmp_path / "broken").unlink()
        until(lambda: served.is_ready and served.answers(), BACK_SECONDS)


def test_a_dead_stub_of_python_mp(tmp_path: Path, check_left: CheckLeft) -> None:
    """That of a passive instance only held a place; without the leader's nothing is left. And the
    drain does not wait for what a dead stub had in hand: Triton would, it never answers that."""
    folder, row = tmp_path / "repository", np.array([[1, 2]], np.int32)
    fault = '{ name: "FAULT" data_type: TYPE_INT32 dims: [ 3 ] }'
    x = '{ name: "X" data_type: TYPE_INT32 dims: [ 2 ] }'
    repository.add(folder, "echo", repository.ECHO.replace(x, f"{x}, {fault}"))

    def echoes() -> bool:
        zeros = np.zeros((1, 3), np.int32)
        with Client(served.endpoints) as client, suppress(InferenceServerException):
            return bool((client.ask("echo", "Y", X=row, FAULT=zeros) == row).all())
        return False

    with command(folder) as served:
        served.wait_ready()
        run, old = served.run, served.stubs("echo")
        os.kill(old["shard_0"], signal.SIGKILL)
        served.wait_for("a passive stub died")
        assert echoes()
        assert served.is_ready
        assert served.stubs("echo") == {"lead_0": old["lead_0"]}

        with grpc.InferenceServerClient(served.endpoints.grpc_url) as client:
            ask_to_sleep(client)
            until(lambda: begun(served) == 2)
            os.kill(old["lead_0"], signal.SIGKILL)
            until(lambda: not served.is_ready)
            until(lambda: served.is_ready and echoes(), BACK_SECONDS)
            until(lambda: served.stubs("echo").keys() == old.keys())
            assert served.model("echo")["replicas"][0]["state"] == "serving"
            drain(served)
    check_left(run)


def begun(served: Command) -> float:
    """How many requests the ranks were given."""
    values = scrape(served.endpoints).values
    return sum(values[key] for key in values if key[0] == "python_mp_queue_seconds_count")


def drain(served: Command, signals: int | None = signal.SIGTERM) -> None:
    """It takes less than half of the exit timeout."""
    began = time.monotonic()
    assert served.end(signals)[0] == 0, served.output
    assert time.monotonic() - began < 15


def ask_to_sleep(client: Any) -> None:
    """For longer than anybody waits here."""
    inputs = []
    for name, values in (("X", [1, 2]), ("FAULT", [SLEEP, 0, 60_000])):
        inputs.append(grpc.InferInput(name, [1, len(values)], "INT32"))
        inputs[-1].set_data_from_numpy(np.array([values], np.int32))
    client.async_infer("echo", inputs, lambda **_: None)


def test_an_error_in_any_loop_ends_nothing(add_model: AddModel) -> None:
    with command(add_model("identity", ECHO), program=("-c", FAULTY)) as served:
        served.wait_ready()
        for loop in LOOPS:
            until(lambda loop=loop: errors(served, loop) == (3, ""), BACK_SECONDS)
        os.kill(served.stubs("identity")["identity_0_0"], signal.SIGKILL)
        until(lambda: not served.is_ready)
        until(lambda: served.is_ready and served.answers(), BACK_SECONDS)


def errors(served: Command, loop: str) -> tuple[int, str]:
    """How many there were, and the one that lasts."""
    said = served.health("/status")[1]["errors"].get(loop, {})
    return said.get("errors", 0), said.get("error", "")


@pytest.fixture
def models(add_model: AddModel) -> Path:
    """`identity`, and `echo` of python_mp with two ranks."""
    folder = add_model("identity", ECHO)
    repository.add(folder, "echo", repository.ECHO)
    return folder


def test_tritonserver_is_started_again(models: Path, check_left: CheckLeft) -> None:
    with command(models) as served:
        served.wait_ready()
        assert served.metric("up") == served.metric("ready") == 1
        assert served.metric("info", version=served.control.version()) == 1
        first, run = served.triton, served.run
        os.kill(first, signal.SIGSEGV)
        until(lambda: not served.is_ready)
        assert served.health("/live") == (200, {"live": True})
        until(lambda: served.is_ready and served.answers(), BACK_SECONDS)
        check_left(run)
        server = served.health("/status")[1]["server"]
        assert server["restarts"] == 1
        assert server["pid"] == served.triton != first
        until(lambda: served.metric("restarts_total") == served.metric("up") == 1)
        second = served.run
        assert served.end(signal.SIGTERM)[0] == 0
        assert "tritonserver was ended by SIGSEGV; starting it again" in served.output
    check_left(second)


def test_no_accepted_request_is_lost_in_a_drain(models: Path) -> None:
    """Clients keep their connections; each answer is right until nobody serves any more."""
    with command(models, "--drain-window-secs=2") as served:
        served.wait_ready()
        told, busy = threading.Event(), threading.Semaphore(0)
        endings: list[str] = []

        def send(number: int) -> None:
            with Client(served.endpoints, ("grpc", "http")[number % 2]) as client:
                try:
                    for value in itertools.count():
                        row = np.array([[value, number]], np.int32)
                        assert (client.ask("echo", "Y", X=row) == row).all()
                        busy.release()
                except InferenceServerException as error:
                    assert told.is_set()
                    endings.append(str(error.status()))
                    served.process.wait()  # with the connection open

        clients = in_background(lambda: in_parallel(CLIENTS, send))
        for _ in range(CLIENTS * 20):
            assert busy.acquire(timeout=30)
        told.set()
        served.process.send_signal(signal.SIGTERM)
        until(lambda: not served.is_ready)
        assert served.metric("draining") == 1
        assert served.answers(), "the window is open"
        drain(served, None)
        clients.result(60)
    assert sorted(endings) == ["404"] * 4 + ["StatusCode.NOT_FOUND"] * 4, "no such model any more"
