"""The front survives what happens to it and inside it: each step of its supervisor may fail."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import pytest

from python_mp.front.group import Group
from python_mp.front.inbox import Inbox
from python_mp.front.replica import Replica
from python_mp.front.status import Status
from python_mp.front.supervise import forkserver_client, supervisor
from python_mp.front.supervise.process import RankProcess
from python_mp.front.supervise.supervisor import Supervisor
from python_mp.front.supervise.watchdog import Watchdog
from python_mp.model.config import ModelConfig
from python_mp.model.errors import LoadError, RequestFailed, Unavailable
from python_mp.rank.engines.echo import SLEEP
from python_mp.wire.arena import Arena
from python_mp.wire.sockets import Connection
from tests.support.configs import echo_config
from tests.support.descriptors import ours
from tests.support.processes import alive, children, cpu_seconds, python, rank_processes, until
from tests.support.replicas import LIMIT, Served, ask, counted, pids, served, values

BACK_SECONDS = 15.0
"""Until it serves again, once the cause of its trouble is gone; its back-off may be 5 s by then."""


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return echo_config(tmp_path, tensor_parallel_size=2, hang_seconds=1)


@pytest.fixture
def two(config: ModelConfig, tmp_path: Path) -> Iterator[Served]:
    with served(config, tmp_path) as replica:
        yield replica


def said(folder: Path) -> dict[str, Any]:
    """What the replica's status file says; empty if there is none."""
    for path in (folder / "status").glob("*.json"):
        return dict(json.loads(path.read_text()))
    return {}


def the_forkserver() -> int:
    """The one of these tests; another one, of torch, may be there for others."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(os.getpid())}
    (pid,) = (pid for pid, line in lines.items() if b"rank.forkserver\0echo\0" in line)
    return pid


class Faults:
    """Makes calls of a function fail, while `armed`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: Exception):
        self.armed = False
        self.raised = 0
        whole = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.armed:
                self.raised += 1
                raise error
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)


STEPS: dict[str, tuple[object, str]] = {
    "the group's memory": (Arena, "create"),
    "its sockets": (Inbox, "__init__"),
    "the ranks' scratch": (sys.modules["python_mp.front.group"].scratch, "make"),
    "a rank": (RankProcess, "__init__"),
    "a rank's pidfd": (os, "pidfd_open"),
    "the start": (Group, "wait_ready"),
    "the stacks": (Group, "read_stacks"),
    "the end": (os, "pwrite"),
    "a kill": (RankProcess, "kill"),
    "a reaping": (RankProcess, "reap"),
    "the status": (Status, "_write"),
    "the log": (supervisor.log, "error"),
    "the watchdog": (Watchdog, "look"),
    "its owner, told that it serves": (Replica, "group_serves"),
    "its owner's work": (Replica, "handle"),
    "the bookkeeping": (Supervisor, "_book"),
    "the forkserver's health": (Supervisor, "_drop_unsound_forkserver"),
    "the wait for their end": (sys.modules["python_mp.front.group"], "wait_all"),
}
PIDFD = "anon_inode:[pidfd]"
FAULT, BUG = OSError(errno.ENOSPC, "no space left on device"), RuntimeError("a bug")


@pytest.mark.parametrize(("step", "error"), [*zip(STEPS, cycle((FAULT, BUG)), strict=False)])
def test_no_step_of_the_supervisor_ends_it(
    config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: Exception,
) -> None:
    fault = Faults(monkeypatch, *STEPS[step], error)
    with served(config, tmp_path) as replica:
        before, open_before = pids(replica), ours()
        sleeping = ask(replica, 1, fault=(SLEEP, 0, 100))
        waiting = ask(replica, 2)
        fault.armed = True
        os.kill(before[1], signal.SIGKILL)
        until(lambda: fault.raised > 0)
        fault.armed = False
        assert values([ask(replica, 3)]) == [[3]]
        until(lambda: said(tmp_path).get("state") == "serving", BACK_SECONDS)
        for future, wanted in ((sleeping, [1]), (waiting, [2])):  # Answered, or refused.
            error_or_none = future.exception(LIMIT)
            assert isinstance(error_or_none, RequestFailed | Unavailable | None)
            if error_or_none is None:
                assert future.result()["Y"].tolist() == [wanted]
        assert said(tmp_path)["ranks"] == pids(replica)
        assert not any(map(alive, before))
        # Of those of ranks: pytest keeps what was logged, with its frames, and so groups' memory.
        until(lambda: ours()[PIDFD] <= open_before[PIDFD])


def test_a_batch_that_a_rank_cannot_be_told_of_is_replayed_at_once(
    two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the watchdog notices that no rank gets on."""
    errors, send = [FAULT], Connection.send

    def fails_once(*args: Any, **more: Any) -> Any:
        if errors:
            raise errors.pop()
        return send(*args, **more)

    monkeypatch.setattr(Connection, "send", fails_once)
    assert values([ask(two, 1, 2)]) == [[1, 2]]
    assert counted(two, "hangs_total", "restarts_total") == [0, 1]


def test_an_answer_that_was_not_heard_is_not_taken_for_the_next_one(
    two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that starts ranks is asked how one ended: here, while there is no memory."""
    forkserver = two.replica._supervisor._forkserver
    assert forkserver is not None
    deaf = Mock(wraps=forkserver._socket)
    deaf.recv.side_effect = chain([OSError(errno.ENOMEM, "no memory")], repeat(DEFAULT))
    monkeypatch.setattr(forkserver, "_socket", deaf)
    os.kill(pids(two)[0], signal.SIGKILL)
    until(lambda: two.replica._supervisor._generation >= 2 and two.replica.serves)
    assert values([ask(two, 3)]) == [[3]]


def test_errors_are_shown(two: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(tmp_path)["errors"] == {}
    fault = Faults(monkeypatch, Arena, "create", FAULT)
    fault.armed = True
    os.kill(pids(two)[0], signal.SIGKILL)
    until(lambda: said(tmp_path)["state"] == "down")
    assert "no space left on device" in said(tmp_path)["reason"]
    with pytest.raises(Unavailable, match="no space left on device"):
        ask(two, 1).result(1.0)
    fault.armed = False
    until(lambda: two.replica.serves, BACK_SECONDS)
    until(lambda: said(tmp_path)["state"] == "serving", BACK_SECONDS)
    errors = said(tmp_path)["errors"]["supervisor"]
    counts = counted(two, "internal_errors_total{thread=supervisor}")
    assert counts == [errors["count"]] == [fault.raised]
    assert "no space left on device" in errors["text"]


# What it was that ranks died of: their own end, or the disk, which says nothing against them.
@pytest.mark.parametrize(
    ("cause", "reason"), [("", "exited with 1"), (str(errno.ENOSPC), "No space left on device")]
)
def test_a_group_that_cannot_start_refuses_at_once_and_comes_back(
    tmp_path: Path, cause: str, reason: str
) -> None:
    path = tmp_path / "cause"
    with served(echo_config(tmp_path, **{"module.die_if": str(path)}), tmp_path) as replica:
        path.write_text(cause)
        os.kill(pids(replica)[0], signal.SIGKILL)
        until(lambda: said(tmp_path)["state"] == "down")
        with pytest.raises(Unavailable, match=reason):
            ask(replica, 1).result(LIMIT)
        before = cpu_seconds(the_forkserver())
        time.sleep(2)
        # Its back-off is still short here; a busy loop would take all of a processor.
        assert cpu_seconds(the_forkserver()) - before < 1
        assert not replica.replica.serves
        path.unlink()
        until(lambda: said(tmp_path)["state"] == "serving", BACK_SECONDS)
        assert values([ask(replica, 2)]) == [[2]]
    assert said(tmp_path) == {}


# -- other processes that do not get on ----------------------------------------------------------


FRONT = """
import pathlib, sys, time
from functools import partial
from python_mp.front import local
from python_mp.rank.engines.echo import HANG
from tests.support import configs, replicas
folder = pathlib.Path(sys.argv[1])
local.Replica = partial(local.Replica, server=int(sys.argv[2]))
config = configs.echo_config(folder, tensor_parallel_size=2, pipeline_parallel_size=2)
with replicas.served(config, folder) as replica:
    replicas.ask(replica, 1, fault=(HANG, 1, 0))
    print("serving", flush=True)
    time.sleep(600)
"""


def test_all_end_with_their_server(tmp_path: Path) -> None:
    """A stuck front, and what it has started; the next front removes what it left, and no more."""
    with (
        python("import time; time.sleep(600)") as server,
        python(FRONT, tmp_path, server.pid, says="serving") as front,
    ):
        started = [*children(front.pid), *rank_processes(front.pid).values()]
        assert len(started) == 1 + 4
        server.kill()
        assert front.wait(LIMIT) == -signal.SIGKILL
    until(lambda: not any(map(alive, started)))
    (tmp_path / f"ranks-{front.pid}-0-1" / "rank0").mkdir(parents=True)
    (theirs := tmp_path / f"m.1.lead.-1.{os.getppid()}.json").touch()
    left = [path for path in tmp_path.rglob("*") if str(front.pid) in path.name]
    assert len(left) >= 2
    with served(echo_config(tmp_path), tmp_path):
        assert not any(path.exists() for path in left)
        assert theirs.exists()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_forkserver_that_is_stopped_or_dead_is_replaced(two: Served, number: int) -> None:
    before, forkserver_before = pids(two), the_forkserver()
    os.kill(forkserver_before, number)
    until(lambda: counted(two, "generation", "ranks_alive") == [2, 2], LIMIT)
    assert values([ask(two, 1)]) == [[1]]
    assert not any(map(alive, [*before, forkserver_before]))


def test_a_forkserver_that_does_not_answer_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forkserver_client, "_ANSWER_SECONDS", 2.0)
    with served(echo_config(tmp_path, hang_seconds=0), tmp_path) as replica:
        replica.attend = 0.01
        (before,) = pids(replica)
        os.kill(the_forkserver(), signal.SIGSTOP)
        sleeping = ask(replica, 1, fault=(SLEEP, 0, 300))
        os.kill(before, signal.SIGKILL)
        for number in range(20):  # As `execute` does, which may wait for nothing of this.
            began = time.monotonic()
            ask(replica, number)
            assert time.monotonic() - began < 1
        assert values([sleeping, ask(replica, 2)]) == [[1], [2]]
        assert not alive(before)


def test_a_rank_that_cannot_be_killed_is_left_behind(
    two: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It hangs in a driver, say."""
    monkeypatch.setattr(sys.modules["python_mp.front.group"], "DIE_SECONDS", 0.2)
    other, spared = pids(two)
    kill_group, send = os.killpg, signal.pidfd_send_signal
    monkeypatch.setattr(os, "killpg", lambda pid, number: pid == spared or kill_group(pid, number))
    monkeypatch.setattr(
        signal, "pidfd_send_signal", lambda fd, n: _pid_of(fd) == spared or send(fd, n)
    )
    os.kill(spared, signal.SIGSTOP)
    os.kill(other, signal.SIGKILL)
    until(lambda: counted(two, "generation", "ranks_alive") == [2, 2], LIMIT)
    assert values([ask(two, 1)]) == [[1]]
    assert alive(spared)
    assert f"pid {spared}, is left behind" in caplog.text
    os.kill(spared, signal.SIGKILL)
    until(lambda: not alive(spared))


def _pid_of(pidfd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


def test_an_import_that_hangs_is_within_the_limit_of_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began, before = time.monotonic(), children(os.getpid())
    wanted = "engine echo was not imported within 1 s"
    config = echo_config(tmp_path, start_timeout_seconds=1)
    with pytest.raises(LoadError, match=wanted), served(config, tmp_path):
        pass
    assert time.monotonic() - began < 30
    assert not [pid for pid in children(os.getpid()) if alive(pid) and pid not in before]
