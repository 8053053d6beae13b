"""What a run leaves on the machine, and that it goes when the last process has let go."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.errors import ServerError
from server.process import run

Holder = tuple[run.Run, subprocess.Popen[bytes]]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-ins for /dev/shm and the folder for temporary files."""
    segments, temporary = tmp_path / "shm", tmp_path / "tmp"
    segments.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(run, "SEGMENTS", segments)
    monkeypatch.setenv("TMPDIR", str(temporary))
    return iter([None])


def make() -> tuple[run.Run, Path]:
    """A run with one segment."""
    made = run.begin()
    segment = run.SEGMENTS / f"{made.prefix}segment"
    segment.touch()
    (made.folder / "file").touch()
    return made, segment


def test_run_that_is_over_is_removed_and_nothing_else() -> None:
    made, _ = make()
    others = run.SEGMENTS / "triton_python_backend_shm_region_1"
    others.touch()
    os.close(made.lock)
    run.remove_leftovers()
    assert list(run.SEGMENTS.iterdir()) == [others]
    assert not made.folder.exists()


@pytest.fixture
def holder() -> Iterator[Holder]:
    """A run whose lock is held by a process that would not end by itself."""
    made, _ = make()
    child = subprocess.Popen(["sleep", "600"], pass_fds=[made.lock])
    os.close(made.lock)
    yield made, child
    child.kill()
    child.wait()


def test_a_run_is_left_alone_while_a_process_of_it_lives(holder: Holder) -> None:
    made, child = holder
    for private in (made.folder, made.lock_file):
        assert private.stat().st_mode & 0o077 == 0
    assert run.holders(made.lock_file) == [child.pid]
    run.remove_leftovers()
    assert child.poll() is None
    assert made.folder.exists()
    assert not made.close(timeout=0.0)
    child.kill()
    child.wait()
    assert made.close(timeout=5.0)
    assert made.close(), "again"
    assert list(run.SEGMENTS.iterdir()) == []


def test_an_orphaned_stub_is_ended(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    _, child = holder
    monkeypatch.setattr(run, "ORPHAN", "sleep")
    threading.Thread(target=child.wait).start()
    run.remove_leftovers()
    assert child.wait() == -signal.SIGKILL
    assert list(run.SEGMENTS.iterdir()) == []


def test_the_guard_ends_what_is_left(holder: Holder) -> None:
    made, child = holder
    with made.guard() as guard:
        with pytest.raises(subprocess.TimeoutExpired):
            guard.wait(0.3)  # it watches
        began = time.monotonic()
        assert guard.stdin is not None
        guard.stdin.close()  # as the kernel does for one that died
        assert child.wait() == -signal.SIGKILL
    assert time.monotonic() - began > run.MERCY - 0.1
    assert not made.folder.exists()


@pytest.mark.parametrize("content", ["", "/home", "../elsewhere"])
def test_lock_that_names_another_folder_removes_no_folder(content: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    lock_file = run.SEGMENTS / "python_mp_00000000_lock"
    lock_file.write_text(content)
    run.remove_leftovers()
    assert not lock_file.exists()
    assert (tmp_path / "elsewhere").exists()


def test_no_place_for_segments_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SEGMENTS", Path("/nonexistent"))
    with pytest.raises(ServerError, match=r"cannot write /nonexistent\S+: No such file"):
        run.begin()
