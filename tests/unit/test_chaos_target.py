"""The chaos program and a server's processes: it must harm those, and no other; and what it puts
into a repository must go again. The server is made up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from clients.chaos import __main__ as program
from clients.chaos.leaks import Bounds, Usage, run_folder
from clients.chaos.processes import ChaosError, Process, agent_of, ancestors, descendants
from clients.chaos.target import Status, Target


def status(**change: Any) -> dict[str, Any]:
    """What /status says of an ensemble of one sharded model."""
    replica = {"state": "serving", "ranks": [31, 32], "hosts": ["", "b"], "generation": 1}
    model = {"ready": True, "reason": "", "versions": [3], "stubs": [], "replicas": []}
    sharded = {**model, "stubs": [{"instance": "lead_0", "pid": 21}], "replicas": [replica]}
    models = {"embed": model, "encoder": sharded}
    said = {"ready": True, "reason": "", "watcher": 1, "server": {"pid": 11}, "models": models}
    return {**said, **change}


def test_what_can_be_hit_and_whether_all_serves() -> None:
    said = status()
    parsed = Status.parse(said)
    assert parsed.is_whole
    assert parsed.models["encoder"].ranks == [(0, 31, ""), (1, 32, "b")]
    assert [parsed.names(pid) for pid in (11, 21, 31, 32, 33)] == [True] * 4 + [False]
    replicas = said["models"]["encoder"]["replicas"]
    replicas.append({**replicas[0], "state": "restarting", "ranks": [33, 34]})
    parsed = Status.parse(said)
    assert parsed.ready
    assert not parsed.is_whole
    assert not parsed.names(33), "it serves nobody"


def test_a_house_is_asked_until_it_holds_and_what_does_not_last_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """/status may be late: whole, then not, then whole again for good."""
    target = Target("http://127.0.0.1:1", "http://127.0.0.1:1", "right")
    with pytest.raises(ChaosError, match=r"/status does not answer; is the server running\?"):
        target.status()
    monkeypatch.setattr(target, "status", lambda: Status.parse(status()))
    assert target.wait(lambda now: not now.is_whole, 0.2) is None
    looks = iter([True] * 3 + [False] + [True] * 1000)
    asked: list[float] = []

    def holds(_: Status) -> bool:
        asked.append(time.monotonic())
        return next(looks)

    since = target.wait(holds, 10, steady=0.5)
    assert since is not None
    assert asked[3] <= since <= asked[4]
    assert asked[-1] - since >= 0.4


def test_only_the_server_s_processes_are_hit() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        mine = Process.of(child.pid, os.getpid())
        assert os.getpid() in ancestors(child.pid)
        assert child.pid in descendants(os.getpid())
        with pytest.raises(ChaosError, match="none of the server's"):
            Process.of(os.getppid(), os.getpid())
        other = Process(psutil.Process(child.pid))
        other.known._ident = (child.pid, 0.0)  # when it was started
        assert not other.send(signal.SIGKILL), "another process"
        assert child.poll() is None
        assert mine.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not mine.send(signal.SIGKILL)


def test_ranks_of_an_agent_here_are_hit_and_of_another_machine_s_are_not() -> None:
    script = (
        "import subprocess as s, sys; child = s.Popen(['sleep', '60']);"
        "print(child.pid, flush=True); child.wait()"
    )
    command = [sys.executable, "-c", script, "python_mp.agent", "--name", "b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout
        rank = int(agent.stdout.readline())
        assert agent_of(rank, "b") == agent.pid
        assert agent_of(rank, "c") is None
        assert agent_of(os.getpid(), "b") is None
        assert agent_of(0, "b") is None
        Process.of(rank, agent.pid).send(signal.SIGKILL)


def test_growth_beyond_its_bound_is_a_leak() -> None:
    whole = {"processes": 0, "zombies": 0, "segments": 0, "MiB of segments": 32}
    whole |= {"threads of stubs": 4, "descriptors of watcher": 4, "MiB of tritonserver": 32}
    before = Usage(dict.fromkeys(whole, 100.0))
    for figure, more in whole.items():
        assert not Usage(before.figures | {figure: 100.0 + more}).leaks(before, Bounds())
        [leak] = Usage(before.figures | {figure: 101.0 + more}).leaks(before, Bounds())
        assert leak.startswith(f"{figure}: ")


def test_usage_counts_what_a_process_holds(tmp_path: Path) -> None:
    """A process that stands for watcher and tritonserver: 1 child, 3 files more, 1 thread more."""
    script = (
        "import threading; files = [open('/dev/null') for _ in range(3)];"
        "import subprocess; child = subprocess.Popen(['sleep', '60']);"
        "import sys; threading.Thread(target=sys.stdin.read).start(); print(flush=True)"
    )
    (tmp_path / "weights").write_bytes(b"1" * (2 << 20))
    (tmp_path / "link").symlink_to("nowhere")
    environment = {**os.environ, "PYTHON_MP_RUNTIME_DIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as process:
        process.stdout.readline()
        said = status(watcher=process.pid, server={"pid": process.pid})
        figures = Usage.of(Status.parse(said)).figures
        assert run_folder(process.pid) == tmp_path
        for child in descendants(process.pid):
            os.kill(child, signal.SIGKILL)
        process.stdin.close()
    counted = {"processes": 2, "threads of watcher": 2, "descriptors of tritonserver": 6}
    counted |= {"files": 2, "zombies": 0, "segments": 0, "descriptors of stubs": 0}
    assert {name: figures[name] for name in counted} == counted
    assert figures["MiB of watcher"] > 1
    assert 2 <= figures["MiB of files"] < 2.1


def test_what_cannot_begin_is_a_sentence_and_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No server, and faults that there are not."""
    monkeypatch.setenv("HEALTH_PORT", "1")
    assert program.main([]) == 2
    assert capsys.readouterr().err.startswith("chaos: ")
    for faults in ("kil", "kill,"):
        with pytest.raises(SystemExit, match="2"):
            program.main(["--faults", faults])
        assert f"no fault {faults.rpartition(',')[2]!r}; there are" in capsys.readouterr().err


def test_inputs_that_may_be_left_out_are(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [{"name": name, "datatype": "BYTES", "shape": [-1, 1]} for name in ("TEXT", "PROMPT")]
    config = {"input": [{"name": "TEXT"}, {"name": "PROMPT", "optional": True}]}
    pages = {"/v2/models/m": {"name": "m", "inputs": inputs}, "/v2/models/m/config": config}
    monkeypatch.setattr(Target, "_get", lambda _, url: pages[url])
    assert Target("", "", "").metadata("m") == {
        "name": "m",
        "inputs": inputs[:1],
        "streams": False,
    }
