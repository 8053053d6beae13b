"""Stubs, tritonserver, the watcher: whatever is killed, the models answer again and the house is
clean."""

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
from server.process.run import SEGMENTS, remove_leftovers
from server.watch import stubs
from tests.support.serving import processes_of
from tests.triton import repository
from tests.triton.calls import Client, in_parallel, reference
from tests.triton.test_server import ECHO, GATED, Add, Command, command, infer, wait_until

# Mostly 1.6 and 0.4; a busy machine takes longer, and clients.chaos is what measures.
BACK_SECONDS = 15.0
NOTICED_SECONDS = 5.0
GONE_SECONDS = 4.0
DRAIN_SECONDS = 10.0
EXIT_TIMEOUT = 30.0  # of the server: so long what a dead stub leaves may take to end
CLIENTS = 8
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

# The same server, in which a call raises while there is a file of its name.
FAULTY = """
import os, pathlib, sys
from server import __main__, reconciler, control, launch, model, report, repository

def breaks(place, name):
    call = getattr(place, name)
    def fails(*args, **more):
        if pathlib.Path({folder!r}, name).exists():
            raise OSError(24, "Too many open files")
        return call(*args, **more)
    setattr(place, name, fails)

for place, name in {calls}:
    breaks(eval(place), name)
sys.exit(__main__.main())
"""
FAULTS = {
    "living": ("reconciler.stubs", "the models' watch"),
    "read": ("model.Said", "the models' watch"),
    "states": ("repository", "the repository's watch"),
    "ask": ("control.IndexLine", "the probe of tritonserver"),
    "of": ("report", "the report"),
    "feed": ("launch.Log", "the log's reader"),
}


def answers(served: Command, value: float = 2.5) -> bool:
    try:
        return infer(served.endpoints, value) == value
    except OSError:
        return False


def echoes(served: Command) -> bool:
    row = np.array([[1, 2]], np.int32)
    with Client(served.endpoints) as client, suppress(InferenceServerException):
        return bool((client.ask("echo", "Y", X=row) == row).all())
    return False


def stub_pids(served: Command, model: str) -> dict[str, int]:
    return {s.instance: s.pid for s in stubs.living(served.triton) if s.model == model}


def segments(served: Command) -> set[str]:
    return {path.name for path in SEGMENTS.glob(f"{served.run[0]}*")}


def assert_private(served: Command) -> None:
    """Nobody else may read what clients send."""
    modes = {path.name: path.stat().st_mode & 0o077 for path in SEGMENTS.glob(f"{served.run[0]}*")}
    assert len(modes) > 1
    assert set(modes.values()) == {0}, modes


@pytest.fixture
def mortal(add_model: Add, tmp_path: Path) -> Path:
    return add_model("identity", MORTAL.format(broken=str(tmp_path / "broken")))


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_a_dead_stub_is_replaced(mortal: Path, how: str, check_left: Callable[..., None]) -> None:
    """Ready says so within a second; nothing of the dead one stays; the drain is not held up."""
    with command(mortal) as served:
        served.wait_ready()
        run, before = served.run, segments(served)
        if how == "idle":
            os.kill(stub_pids(served, "identity")["identity_0_0"], signal.SIGKILL)
        else:  # Triton takes a second to see it
            threading.Thread(target=lambda: answers(served, value=13)).start()
        died = time.monotonic()
        wait_until(lambda: "stub died" in served.health()[1]["reason"], NOTICED_SECONDS)
        wait_until(lambda: answers(served) and served.is_ready, BACK_SECONDS)
        assert time.monotonic() - died < BACK_SECONDS
        wait_until(lambda: len(segments(served)) == len(before), EXIT_TIMEOUT + 15.0)
        assert segments(served) & before == {f"{run[0]}lock"}
        assert_private(served)
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert served.end()[0] == 0, served.output
        assert time.monotonic() - began < DRAIN_SECONDS, "not the 30 s of the exit timeout"
    check_left(run)


def test_the_other_replica_serves_and_then_all_are_new(mortal: Path) -> None:
    """Triton would keep the old ones for ever, because one of them died with a request in hand."""
    config = mortal / "identity" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))
    with command(mortal, "--exit-timeout-secs=1") as served:
        served.wait_ready()
        before = set(stub_pids(served, "identity").values())
        with pytest.raises(OSError, match="HTTP Error 500"):
            infer(served.endpoints, 13)
        seen = set()

        def all_are_new() -> bool:
            seen.add(served.health()[0])
            now = set(stub_pids(served, "identity").values())
            return len(now) == len(before) and not now & before

        wait_until(all_are_new)
        assert seen == {200}
        assert all(answers(served) for _ in range(10))


def test_a_stub_that_dies_at_every_load(mortal: Path, tmp_path: Path) -> None:
    with command(mortal) as served:
        served.wait_ready()
        (tmp_path / "broken").touch()
        os.kill(stub_pids(served, "identity")["identity_0_0"], signal.SIGKILL)
        served.wait_for("next try in 1 s")
        assert served.health()[0] == 503
        assert not served.model("identity")["ready"]
        (tmp_path / "broken").unlink()
        wait_until(lambda: served.is_ready and answers(served))


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A model of python_mp with one passive instance."""
    folder = tmp_path / "repository"
    repository.add(folder, "echo", repository.ECHO)
    return folder


def test_a_dead_stub_of_python_mp(echo: Path) -> None:
    """That of a passive instance only held a place; without the leader's nothing is left."""
    with command(echo) as served:
        served.wait_ready()
        old = stub_pids(served, "echo")
        os.kill(old["shard_0"], signal.SIGKILL)
        served.wait_for("a passive stub died")
        assert echoes(served)
        assert served.is_ready
        assert stub_pids(served, "echo") == {"lead_0": old["lead_0"]}

        os.kill(old["lead_0"], signal.SIGKILL)
        died = time.monotonic()
        wait_until(lambda: not served.is_ready, NOTICED_SECONDS)
        wait_until(lambda: served.is_ready and echoes(served))
        assert time.monotonic() - died < BACK_SECONDS + 2
        wait_until(lambda: stub_pids(served, "echo").keys() == old.keys())
        assert served.model("echo")["replicas"][0]["state"] == "serving"


@pytest.mark.slow
def test_an_ensemble_comes_back_with_its_steps(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    repository.copy(folder, "embed", "embed_tokenizer", "embed_encoder", "embed_pooler")
    text = reference().texts[0]

    def embeds() -> bool:
        with Client(served.endpoints) as client, suppress(InferenceServerException):
            return reference().cosine([0], client.embed([text])) > 0.9999
        return False

    with command(folder) as served:
        served.wait_ready()
        for model, instance in (("embed_tokenizer", "_0_0"), ("embed_encoder", "lead_0")):
            pids = stub_pids(served, model)
            os.kill(next(pids[name] for name in pids if name.endswith(instance)), signal.SIGKILL)
            died = time.monotonic()
            wait_until(lambda: not served.is_ready, NOTICED_SECONDS)
            assert {"embed", "embed_pooler"} & {
                name for name, m in served.health()[1]["models"].items() if not m["ready"]
            } == {"embed"}
            wait_until(lambda: served.is_ready and embeds(), 60)  # most of it is the load
            print(f"{model} answers again after {time.monotonic() - died:.1f} s")


def test_an_error_in_any_loop_ends_nothing(mortal: Path, tmp_path: Path) -> None:
    """And each loop does its work again as soon as the fault is over."""
    calls = [(place, name) for name, (place, _) in FAULTS.items()]
    program = ("-c", FAULTY.format(folder=str(tmp_path), calls=calls))
    with command(mortal, program=program) as served:

        def errors(loop: str) -> dict[str, Any]:
            return dict(served.health("/status")[1]["errors"][loop])

        served.wait_ready()
        for name, (_, loop) in FAULTS.items():
            fault, old = tmp_path / name, stub_pids(served, "identity")["identity_0_0"]
            fault.touch()
            if name in ("living", "feed"):  # something to mend, and to log
                os.kill(old, signal.SIGKILL)
            served.wait_for(f"error: {loop}: OSError: [Errno 24] Too many open files")
            fault.unlink()
            wait_until(lambda loop=loop: errors(loop)["errors"] and not errors(loop)["error"])
            wait_until(lambda: served.is_ready and answers(served))
        served.process.terminate()
        assert served.end()[0] == 0, served.output


def test_tritonserver_is_started_again(add_model: Add, check_left: Callable[..., None]) -> None:
    with command(add_model("identity", ECHO)) as served:
        served.wait_ready()
        first, run = served.triton, served.run
        os.kill(first, signal.SIGSEGV)
        wait_until(lambda: not served.is_ready, NOTICED_SECONDS)
        assert served.health("/live") == (200, {"live": True})
        wait_until(lambda: served.is_ready and answers(served))
        check_left(run)
        server = served.health("/status")[1]["server"]
        assert server["restarts"] == 1
        assert server["pid"] == served.triton != first
        second = served.run
        served.process.send_signal(signal.SIGTERM)
        assert served.end()[0] == 0
        assert "tritonserver was ended by SIGSEGV; starting it again" in served.output
    check_left(second)


def test_nothing_outlives_a_killed_watcher(add_model: Add, tmp_path: Path) -> None:
    """Not even a request that never ends."""
    with command(add_model("identity", GATED.format(gate=str(tmp_path)))) as served:
        served.wait_ready()
        prefix, folder = served.run
        client = threading.Thread(target=lambda: answers(served))
        client.start()
        wait_until((tmp_path / "entered").exists)
        served.process.kill()
        wait_until(lambda: not processes_of(folder), GONE_SECONDS)
        wait_until(lambda: not [*SEGMENTS.glob(f"{prefix}*")] and not folder.exists(), 1.0)
        client.join()


def test_the_next_start_finds_a_clean_house(add_model: Add) -> None:
    """After SIGKILL of watcher, guard and tritonserver at once, nobody is left to clean up."""
    models = add_model("identity", ECHO)
    with command(models) as served:
        served.wait_ready()
        (prefix, folder), triton = served.run, served.triton
        children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children")
        for pid in [served.process.pid, *map(int, children.read_text().split())]:
            os.kill(pid, signal.SIGKILL)
        served.process.wait()
        wait_until(lambda: triton not in processes_of(folder))
        remove_leftovers()
        wait_until(lambda: not processes_of(folder), GONE_SECONDS)
        remove_leftovers()
        assert not [*SEGMENTS.glob(f"{prefix}*")]
        assert not folder.exists()


def test_no_accepted_request_is_lost_in_a_drain(add_model: Add) -> None:
    """Clients keep their connections; each answer is right until nobody serves any more."""
    with command(add_model("identity", ECHO), "--drain-window-secs=1") as served:
        served.wait_ready()
        told, busy = threading.Event(), threading.Semaphore(0)
        endings: list[str] = []

        def send(number: int) -> None:
            with Client(served.endpoints, ("grpc", "http")[number % 2]) as client:
                try:
                    for value in itertools.count():
                        row = np.array([[value]], np.float32)
                        assert client.ask("identity", "OUT", IN=row) == row
                        busy.release()
                except InferenceServerException as error:
                    assert told.is_set()
                    endings.append(str(error.status()))
                    served.process.wait()  # with the connection open

        clients = threading.Thread(target=in_parallel, args=[CLIENTS, send])
        clients.start()
        for _ in range(CLIENTS * 20):
            assert busy.acquire(timeout=30)
        began = time.monotonic()
        told.set()
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not served.is_ready, NOTICED_SECONDS)
        assert answers(served), "the window is open"
        status, output = served.end()
        took = time.monotonic() - began
        clients.join()
    assert status == 0, output
    assert took < DRAIN_SECONDS
    assert sorted(endings) == ["404"] * 4 + ["StatusCode.NOT_FOUND"] * 4, "no such model any more"


def test_the_drain_does_not_wait_for_what_a_dead_stub_had_in_hand(
    tmp_path: Path, check_left: Callable[..., None]
) -> None:
    """Triton never answers it, and would wait until the exit timeout."""
    folder = tmp_path / "repository"
    fault = '{ name: "FAULT" data_type: TYPE_INT32 dims: [ 3 ] }'
    x = '{ name: "X" data_type: TYPE_INT32 dims: [ 2 ] }'
    repository.add(folder, "echo", repository.ECHO.replace(x, f"{x}, {fault}"))
    with command(folder) as served:
        served.wait_ready()
        run = served.run
        inputs = []
        for name, row in (("X", [1, 2]), ("FAULT", [SLEEP, 0, 5000])):
            inputs.append(grpc.InferInput(name, [1, len(row)], "INT32"))
            inputs[-1].set_data_from_numpy(np.array([row], np.int32))
        client = grpc.InferenceServerClient(served.endpoints.grpc_url)
        client.async_infer("echo", inputs, lambda **_: None)
        time.sleep(0.5)  # It is in hand.
        old = stub_pids(served, "echo")["lead_0"]
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: stub_pids(served, "echo").get("lead_0", old) != old and served.is_ready)
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert served.end()[0] == 0, served.output
        assert time.monotonic() - began < DRAIN_SECONDS
        client.close()
    check_left(run)
