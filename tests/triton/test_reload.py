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
from tests.support import python_models, repository
from tests.support.calls import Client, in_background, in_parallel
from tests.support.command import Command, assert_private, command
from tests.support.processes import until
from tests.support.python_models import BROKEN, ECHO
from tests.support.serving import processes_of
from tests.triton.conftest import AddModel

CLIENTS = 8
# The same server, which looks at its repository more often, to be quick.
EAGER = "import sys; from server import __main__; from server.watch import reconciler"
EAGER_SERVER = ("-c", f"{EAGER}; reconciler.POLL_SECONDS = 0.3; sys.exit(__main__.main())")
GROWTH = 1.02  # of ten reloads; the first ten fill the allocators' pools, 1.5 MB in all
ROW = np.array([[1, 2]], np.int32)


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
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            rows = dict(row.split(":") for row in lines)
            total += sum(int(rows[key].split()[0]) for key in ("Pss_Anon", "Pss_Shmem"))
    return total


@contextmanager
def load(served: Command, model: str, names: tuple[str, ...], row: Any) -> Iterator[None]:
    """Clients in closed loop, all of whose answers are right."""
    stop, counts = threading.Event(), [0] * CLIENTS

    def send(number: int) -> None:
        with Client(served.endpoints, ("grpc", "http")[number % 2]) as client:
            while not stop.is_set():
                assert (client.ask(model, names[1], **{names[0]: row}) == row).all()
                counts[number] += 1
                time.sleep(0.01)

    clients = in_background(lambda: in_parallel(CLIENTS, send))
    try:
        yield
    finally:
        stop.set()
        clients.result(60)
    assert min(counts) > 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """To which every test adds a model of its own."""
    folder = tmp_path_factory.mktemp("reload") / "repository"
    python_models.add(folder, "identity")
    with command(folder, program=EAGER_SERVER) as started:
        started.wait_ready()
        yield started
        assert started.is_ready


@pytest.fixture
def model(served: Command, request: pytest.FixtureRequest) -> Iterator[Path]:
    """`echo` of python_mp with two ranks where a test asks for it, else one that it alone has."""
    folder = served.repository
    name = request.param if hasattr(request, "param") else request.node.name
    made = folder / name
    if name == "echo":
        repository.add(folder, name, repository.ECHO)
    else:
        python_models.add(folder, name)
    until(lambda: served.model(name).get("ready"))
    yield made
    shutil.rmtree(made, ignore_errors=True)
    until(lambda: name not in served.health()[1]["models"])


def versions(served: Command, model: Path) -> Any:
    return served.model(model.name)["versions"]


@pytest.mark.parametrize(
    "reloads", [6, pytest.param(20, marks=pytest.mark.campaign)], ids=["short", "long"]
)
def test_reloads_lose_no_request_and_no_memory(tmp_path: Path, reloads: int) -> None:
    used: list[int] = []
    echo = repository.add(tmp_path, "echo", repository.ECHO)
    (echo / "1" / "module.py").write_text("# something to copy")
    with command(tmp_path, program=EAGER_SERVER) as served:
        served.wait_ready()
        with load(served, "echo", ("X", "Y"), ROW):
            for number in range(2, reloads + 2):
                publish(echo, number)
                shutil.rmtree(echo / str(number - 1))
                until(lambda n=number: versions(served, echo) == [n])
                if number in (11, 21):
                    until(lambda: len(stubs.living(served.triton)) == 2)
                    used.append(memory(served))
        until(lambda: len(stubs.living(served.triton)) == 2)
    assert not used or used[1] < used[0] * GROWTH


def test_a_broken_version_leaves_the_old_one(served: Command, model: Path) -> None:
    """It is tried once, and again when its files change."""
    name = model.name
    publish(model, 2, BROKEN)
    line = served.wait_for(f"warning: {name} did not load")
    assert "ValueError: the weights are missing (2/model.py, line 4)" in line
    assert served.is_ready
    assert served.answers(model=name)
    assert "the weights are missing" in served.model(name)["reason"]
    assert versions(served, model) == [1]
    (model / "2" / "model.py").write_text(ECHO)
    until(lambda: versions(served, model) == [2] and served.model(name)["reason"] == "")
    for result, times in (("failed", 1), ("succeeded", 2)):
        assert served.metric("model_reloads_total", model=name, result=result) == times


def test_a_broken_config_and_a_fifo(served: Command, model: Path) -> None:
    """The second would hold Triton for ever."""
    (model / "config.pbtxt").write_text("nonsense {")
    assert model.name in served.wait_for("did not load")
    stuck = model.parent / "stuck"
    (stuck / "1").mkdir(parents=True)
    os.mkfifo(stuck / "config.pbtxt")
    line = served.wait_for("stuck did not load")
    assert "stuck/config.pbtxt is neither a file nor a folder; it is not served" in line
    assert served.answers(model=model.name)
    assert not served.model("stuck")["ready"]
    code, page = served.health("/ready", "")
    assert (code, page["models"]["stuck"]["reason"]) == (200, "it did not load"), "it never served"
    assert served.metric("model_ready", model="stuck") == 0
    shutil.rmtree(stuck)
    until(lambda: "stuck" not in served.health()[1]["models"])


@pytest.mark.parametrize("model", ["copies", "echo"], indirect=True)
def test_another_number_of_replicas_keeps_the_others(served: Command, model: Path) -> None:
    """Their stubs and ranks go on, and there is no moment without an answer."""
    config, name, before = model / "config.pbtxt", model.name, served.stubs(model.name)
    old, new = ("count: 1", "count: 3") if name == "copies" else ("kind", "count: 2 kind")
    names, row = (("IN", "OUT"), np.array([[2.5]], np.float32)) if name == "copies" else ("XY", ROW)
    with load(served, name, tuple(names), row):
        config.write_text(config.read_text().replace(old, new))
        until(lambda: len(served.stubs(name)) == len(before) + 2)
        states = ["serving"] * 2 if name == "echo" else []
        until(lambda: [each["state"] for each in served.model(name)["replicas"]] == states)
    assert before.items() <= served.stubs(name).items()
    assert served.is_ready


def test_models_come_and_go(served: Command, model: Path) -> None:
    assert_private(served.run[0])
    assert served.infer(1.5, model.name) == 1.5
    shutil.rmtree(model)
    served.wait_for(f"{model.name} was removed")
    until(lambda: model.name not in served.health()[1]["models"])
    assert served.is_ready
    until(lambda: not served.stubs(model.name))


def test_nothing_is_reloaded_unless_wanted(add_model: AddModel) -> None:
    model = add_model("identity", ECHO) / "identity"
    with command(model.parent, "--no-watch-repository", program=EAGER_SERVER) as served:
        served.wait_ready()
        publish(model, 2)
        time.sleep(1.5)  # five looks
        assert versions(served, model) == [1]
