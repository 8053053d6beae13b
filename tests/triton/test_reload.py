"""What changes in the repository is served from then on, and no request is lost by it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.watch import stubs
from tests.support.serving import processes_of
from tests.triton import repository
from tests.triton.calls import Client, in_parallel
from tests.triton.test_server import BROKEN, ECHO, Add, Command, command, infer, wait_until
from tests.triton.test_watcher import answers, assert_private, stub_pids

CLIENTS = 8
RELOADS = 20
# The same server, which looks at its repository more often, to be quick.
EAGER = "import sys; from server import __main__, reconciler; reconciler.POLL_SECONDS = 0.1"
EAGER_SERVER = ("-c", f"{EAGER}; sys.exit(__main__.main())")
GROWTH = 1.02  # of ten reloads; the first ten fill the allocators' pools, 1.5 MB in all


def publish(model: Path, number: int, source: str | None = None) -> None:
    """A new version, the newest one's copy, as the build scripts do it: by one rename."""
    newest = max((path for path in model.iterdir() if path.is_dir()), key=lambda path: path.name)
    draft = model / ".building-test"
    shutil.copytree(newest, draft, ignore=shutil.ignore_patterns("__pycache__"))
    if source is not None:
        (draft / "model.py").write_text(source)
    draft.rename(model / str(number))


def memory(served: Command) -> int:
    """KiB of the whole tree that no file backs; shared pages count once. (How much of a library
    is in memory depends on who else on this machine has it open.)"""
    total = 0
    for pid in [served.process.pid, *processes_of(served.run[1])]:
        with suppress(OSError):
            rows = dict(
                row.split(":")
                for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            )
            total += sum(int(rows[key].split()[0]) for key in ("Pss_Anon", "Pss_Shmem"))
    return total


@contextmanager
def load(served: Command, model: str, names: tuple[str, ...], row: Any) -> Iterator[list[int]]:
    """Clients in closed loop; counts of right answers, one a client. Any failure comes out."""
    stop, counts = threading.Event(), [0] * CLIENTS

    def send(number: int) -> None:
        with Client(served.endpoints, ("grpc", "http")[number % 2]) as client:
            while not stop.is_set():
                assert (client.ask(model, names[1], **{names[0]: row}) == row).all()
                counts[number] += 1
                time.sleep(0.01)

    failures: list[BaseException] = []

    def run() -> None:
        try:
            in_parallel(CLIENTS, send)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()
    assert failures == [], str(failures[0])
    assert min(counts) > 0


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A model of python_mp with two ranks."""
    folder = tmp_path / "repository"
    repository.add(folder, "echo", repository.ECHO)
    return folder


@pytest.mark.slow
def test_reloads_lose_no_request_and_no_memory(echo: Path) -> None:
    used: list[int] = []
    row = np.array([[1, 2]], np.int32)
    (echo / "echo" / "1" / "module.py").write_text("# something to copy")
    with command(echo, program=EAGER_SERVER) as served:
        served.wait_ready()
        with load(served, "echo", ("X", "Y"), row) as counts:
            for number in range(2, RELOADS + 2):
                publish(echo / "echo", number)
                shutil.rmtree(echo / "echo" / str(number - 1))
                wait_until(lambda n=number: served.model("echo")["versions"] == [n])
                if number in (RELOADS // 2 + 1, RELOADS + 1):
                    wait_until(lambda: len(stubs.living(served.triton)) == 2)
                    used.append(memory(served))
        print(f"{sum(counts)} requests; KiB after {RELOADS // 2} reloads and {RELOADS}: {used}")
    assert used[1] < used[0] * GROWTH


def test_a_broken_version_leaves_the_old_one(add_model: Add) -> None:
    """It is tried once, and again when its files change."""
    model = add_model("identity", ECHO) / "identity"
    with command(model.parent) as served:
        served.wait_ready()
        publish(model, 2, BROKEN)
        line = served.wait_for("warning: identity did not load")
        assert "ValueError: the weights are missing (2/model.py, line 4)" in line
        assert served.is_ready
        assert answers(served)
        assert "the weights are missing" in served.model("identity")["reason"]
        assert served.model("identity")["versions"] == [1]
        (model / "2" / "model.py").write_text(ECHO)
        wait_until(lambda: served.model("identity")["versions"] == [2])
        wait_until(lambda: served.model("identity")["reason"] == "")
        served.process.terminate()
        assert served.end()[1].count("did not load") == 1


def test_a_broken_config_and_a_fifo(add_model: Add) -> None:
    """The second would hold Triton for ever."""
    folder = add_model("identity", ECHO)
    with command(folder) as served:
        served.wait_ready()
        (folder / "identity" / "config.pbtxt").write_text("nonsense {")
        assert "identity" in served.wait_for("did not load")
        assert served.is_ready
        (folder / "stuck" / "1").mkdir(parents=True)
        os.mkfifo(folder / "stuck" / "config.pbtxt")
        line = served.wait_for("stuck did not load")
        assert "stuck/config.pbtxt is neither a file nor a folder; it is not served" in line
        assert answers(served)
        assert not served.model("stuck")["ready"]
        assert served.is_ready, "it never served, and the other does"
        code, page = served.health("/ready", "")
        assert (code, page["models"]["stuck"]["reason"]) == (200, "it did not load")
        assert 'tritonserver_model_ready{model="stuck"} 0.0' in served.metrics()


@pytest.mark.parametrize("kind", ["python", "python_mp"])
def test_another_number_of_replicas_keeps_the_others(kind: str, add_model: Add, echo: Path) -> None:
    """Their stubs and ranks go on, and there is no moment without an answer."""
    if kind == "python":
        add_model("identity", ECHO)
        config, old, new = echo / "identity" / "config.pbtxt", "count: 1", "count: 3"
        names, row, more = ("identity", "IN", "OUT"), np.array([[2.5]], np.float32), 2
    else:
        config, old, new = (
            echo / "echo" / "config.pbtxt",
            "kind: KIND_CPU",
            "count: 2 kind: KIND_CPU",
        )
        names, row, more = ("echo", "X", "Y"), np.array([[1, 2]], np.int32), 2
    with command(echo) as served:
        served.wait_ready()
        before = stub_pids(served, names[0])
        with load(served, names[0], names[1:], row):
            config.write_text(config.read_text().replace(old, new))
            wait_until(lambda: len(stub_pids(served, names[0])) == len(before) + more)
            time.sleep(0.5)
        assert before.items() <= stub_pids(served, names[0]).items()
        assert served.is_ready
        states = ["serving"] * 2 if kind == "python_mp" else []
        wait_until(lambda: [each["state"] for each in served.model(names[0])["replicas"]] == states)


def test_models_come_and_go(add_model: Add) -> None:
    folder = add_model("identity", ECHO)
    with command(folder) as served:
        served.wait_ready()
        shutil.copytree(folder / "identity", folder / ".draft")
        (folder / ".draft").rename(folder / "second")
        wait_until(lambda: served.model("second").get("ready"))
        assert_private(served)
        assert infer(served.endpoints, 1.5, "second") == 1.5
        shutil.rmtree(folder / "second")
        served.wait_for("second was removed")
        wait_until(lambda: "second" not in served.health()[1]["models"])
        assert served.is_ready
        wait_until(lambda: not stub_pids(served, "second"))


def test_nothing_is_reloaded_unless_wanted(add_model: Add) -> None:
    model = add_model("identity", ECHO) / "identity"
    with command(model.parent, "--no-watch-repository") as served:
        served.wait_ready()
        publish(model, 2)
        time.sleep(3)
        assert served.model("identity")["versions"] == [1]
