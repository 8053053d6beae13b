"""What changes in the repository is served from then on, and no request is lost by it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from tests.triton.conftest import AddModel

CLIENTS = 8
# The same server, which looks at its repository more often, to be quick.
EAGER = "import sys; from server import __main__; from server.watch import reconciler"
EAGER_SERVER = ("-c", f"{EAGER}; reconciler.POLL_SECONDS = 0.3; sys.exit(__main__.main())")
ROW = np.array([[1, 2]], np.int32)


def publish(model: Path, number: int, source: str | None = None) -> None:
    """A new version, the newest one's copy, as the build scripts do it: by one rename."""
    newest = max((path for path in model.iterdir() if path.is_dir()), key=lambda path: path.name)
    draft = model / ".building-test"
    shutil.copytree(newest, draft, ignore=shutil.ignore_patterns("__pycache__"))
    if source is not None:
        (draft / "model.py").write_text(source)
    draft.rename(model / str(number))


@contextmanager
def load(served: Command) -> Iterator[None]:
    """Clients of `echo` in closed loop, all of whose answers are right."""
    stop, counts = threading.Event(), [0] * CLIENTS

    def send(number: int) -> None:
        with Client(served.endpoints, ("grpc", "http")[number % 2]) as client:
            while not stop.is_set():
                assert (client.ask("echo", "Y", X=ROW) == ROW).all()
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
    """One that the test alone has."""
    name = request.node.name
    made = python_models.add(served.repository, name)
    until(lambda: served.model(name).get("ready"))
    yield made
    shutil.rmtree(made, ignore_errors=True)
    until(lambda: name not in served.health()[1]["models"])


def versions(served: Command, model: Path) -> Any:
    return served.model(model.name)["versions"]


def test_reloads_lose_no_request_and_no_process(tmp_path: Path) -> None:
    echo = repository.add(tmp_path, "echo", repository.ECHO)
    (echo / "1" / "module.py").write_text("# something to copy")
    with command(tmp_path, program=EAGER_SERVER) as served:
        served.wait_ready()
        with load(served):
            for number in range(2, 8):
                publish(echo, number)
                shutil.rmtree(echo / str(number - 1))
                until(lambda n=number: versions(served, echo) == [n])
        until(lambda: len(stubs.living(served.triton)) == 2)


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


def test_another_number_of_replicas_keeps_the_others(served: Command) -> None:
    """Their stubs and ranks go on, and there is no moment without an answer."""
    config = repository.add(served.repository, "echo", repository.ECHO) / "config.pbtxt"
    until(lambda: served.model("echo").get("ready"))
    before = served.stubs("echo")
    with load(served):
        config.write_text(config.read_text().replace("kind", "count: 2 kind"))
        until(lambda: len(served.stubs("echo")) == len(before) + 2)
        until(lambda: [r["state"] for r in served.model("echo")["replicas"]] == ["serving"] * 2)
    assert before.items() <= served.stubs("echo").items()
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
