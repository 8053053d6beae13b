"""What begins once models are ready: builds behind what is served, and demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from python_mp.machine.net import Net
from server import demo
from server.__main__ import main
from server.demo import Demonstrations
from server.endpoints import Endpoints
from server.errors import ServerError
from server.process import beside, late_build
from server.process.late_build import FIRST, LOWEST, LateBuild
from tests.support.processes import alive, until

Made = tuple[LateBuild, list[str]]
READY = frozenset(["embed"])
SHOWS_ITSELF = f"""
import os, sys, time
time.sleep(0.2)
score = open("/proc/self/oom_score_adj").read().strip()
print(sys.argv[-1], os.getpriority(os.PRIO_PROCESS, 0) == {LOWEST}, score == "{FIRST}")
"""
FAILS_TWICE = """
import os, pathlib, signal, sys
times = pathlib.Path("times")
times.write_text(so_far := (times.read_text() if times.exists() else "") + "x")
if len(so_far) == 1:
    print("build: chat: the disk is full", file=sys.stderr)
    sys.exit(1)
if len(so_far) == 2:
    os.kill(os.getpid(), signal.SIGKILL)
print("chat: published")
"""
HAS_A_WORKER = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), worker.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Made]:
    """A builder whose program is the text, and what it says."""

    def begin(text: str) -> Made:
        for name in ("build_scripts/__init__.py", "chat/recipe.toml"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
        (tmp_path / "build_scripts" / "build.py").write_text(text)
        said: list[str] = []
        return LateBuild(tmp_path, ["chat"], Net(say=said.append), said.append), said

    monkeypatch.setattr(beside, "PROJECT", tmp_path)
    monkeypatch.setattr(late_build, "DELAYS", (0.01,))
    return begin


def test_it_begins_once_models_are_ready_and_takes_what_is_left(
    begin: Callable[[str], Made],
) -> None:
    made, said = begin(SHOWS_ITSELF)
    with made:
        assert made._process is None
        made.serving(READY)
        until(lambda: bool(said))
        until(lambda: made._process is not None and made._process.poll() == 0)
        made.serving(READY)
    assert said == ["build: chat True True"]


def test_it_is_tried_until_it_succeeds(begin: Callable[[str], Made], tmp_path: Path) -> None:
    made, said = begin(FAILS_TWICE)
    with made:
        made.serving(READY)
        until(lambda: "build: chat: published" in said)
    assert said[0] == "build: chat: the disk is full"
    assert said[1].startswith("the build of chat failed; what is served goes on; next try in")
    assert said[2].startswith("the build of chat was ended by SIGKILL;")
    assert (tmp_path / "times").read_text() == "xxx"


def test_it_ends_with_all_that_it_has_started(begin: Callable[[str], Made]) -> None:
    made, said = begin(HAS_A_WORKER)
    with made:
        made.serving(READY)
        until(lambda: bool(said))
        pids = [int(pid) for pid in said[0].split()[1:]]
        assert all(map(alive, pids))
    until(lambda: not any(map(alive, pids)))
    assert len(said) == 1, "that it was ended is no failure"


def test_one_that_never_began_ends_at_once(begin: Callable[[str], Made]) -> None:
    made, said = begin("print('began')")
    with made:
        pass
    assert said == []


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"--build chat: there is no .*chat/recipe\.toml"):
        LateBuild(tmp_path, ["chat"], Net(), print)


def test_a_model_is_shown_once_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Endpoints) -> str:
        raise OSError("no answer")

    known = {"embed": lambda _: "a table", "chat": fails, "other": lambda _: "never"}
    monkeypatch.setattr(demo, "KNOWN", known)
    said: list[str] = []
    with Demonstrations(Endpoints(), said.append) as shown:
        for names, lines in ((["embed"], 1), (["embed", "x"], 1), (["chat", "embed"], 2)):
            shown.serving(frozenset(names))
            until(lambda lines=lines: len(said) == lines)  # type: ignore[misc]
    assert said == ["a table", "the demonstration failed: no answer"]


def test_a_server_that_would_never_load_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--no-watch-repository", "--model-control-mode=none", "--allow-http=false"):
        assert main(["--build=chat", option]) == 1
        assert "--build needs a server that loads what changes" in capsys.readouterr().err
