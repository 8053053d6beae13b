"""What one run of the server leaves on the machine, and how it goes away whatever happens.

    /dev/shm/python_mp_3f9c1a20_lock     held (flock) by every process of the run; holds the
                                         path of the run's folder
    /dev/shm/python_mp_3f9c1a20_*        the shared-memory segments of the Python backend
    $TMPDIR/python_mp_3f9c1a20/          the run's private folder

tritonserver and its stubs inherit the lock's descriptor. The kernel lets go of it with the last of
them, however they died, so a lock that can be taken means that the rest is rubbish: no process ids
to mistake, and it holds across containers that share /dev/shm. The watcher and the next server to
start look. A guard, which holds no lock, outlives the watcher: it gives tritonserver a moment to
end by itself, then kills who still holds the lock.
"""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from python_mp.machine.temporary import temporary_folder
from server.errors import ServerError
from server.process.installation import STUB
from server.shell_names import plain_folder

SEGMENTS = Path("/dev/shm")
NAME = "python_mp_"
MERCY = 1.5  # seconds that the processes of a run are given after their watcher's death
ORPHAN = STUB


@dataclass(frozen=True)
class Run:
    """The things of one run: the segments' common prefix, the private folder, the lock."""

    prefix: str
    folder: Path
    lock: int

    @property
    def lock_file(self) -> Path:
        """Where the lock lies."""
        return SEGMENTS / f"{self.prefix}lock"

    def segments_changed(self) -> int:
        """When the last segment, of whomever, was made or removed."""
        return SEGMENTS.stat().st_mtime_ns

    def hide_segments(self) -> None:
        """Keep other users from reading what clients send: Triton makes its segments 0644, whatever
        the umask is."""
        for segment in SEGMENTS.glob(f"{self.prefix}*"):
            with suppress(FileNotFoundError):  # its stub died
                if segment.stat().st_mode & 0o077:
                    segment.chmod(0o600)

    def guard(self) -> subprocess.Popen[bytes]:
        """Start a process that outlives kill -9 of this one, and then ends and removes everything.

        It notices by the end of its stdin, so closing that dismisses it.
        """
        return subprocess.Popen(
            [sys.executable, "-m", "server.process.run", self.lock_file],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # else it would keep a dead watcher's pipe open
            start_new_session=True,
        )

    def close(self, timeout: float = 5.0) -> bool:
        """Remove everything as soon as the run's last process is gone.

        Returns:
            False if some process of the run outlived `timeout` seconds; nothing is removed then.
        """
        return wait_until_over(self.lock_file, timeout)


def begin() -> Run:
    """Remove what runs that died left behind, then make a new run.

    Raises:
        ServerError: /dev/shm or the folder for temporary files cannot be written.
    """
    with suppress(OSError):  # they are no reason not to start
        remove_leftovers()
    prefix = f"{NAME}{secrets.token_hex(4)}_"
    lock_file = SEGMENTS / f"{prefix}lock"
    try:
        folder = plain_folder(temporary_folder()) / prefix.rstrip("_")
        lock = _take_new(lock_file)
        try:
            os.write(lock, os.fsencode(folder))
            folder.mkdir(mode=0o700)
        except OSError:
            os.close(lock)
            lock_file.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ServerError(f"cannot write {error.filename or SEGMENTS}: {error.strerror}") from error
    return Run(prefix, folder, lock)


def remove_leftovers() -> None:
    """Remove folders and segments of all runs of this user that are over."""
    for lock_file in SEGMENTS.glob(f"{NAME}*_lock"):
        if not remove_if_over(lock_file) and _orphaned(pids := holders(lock_file)):
            _kill(pids)
            wait_until_over(lock_file, 1.0)


def wait_until_over(lock_file: Path, timeout: float) -> bool:
    """Remove what is left of a run as soon as it is over; False if that takes too long."""
    deadline = time.monotonic() + timeout
    while not remove_if_over(lock_file):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def holders(lock_file: Path) -> list[int]:
    """The processes that hold a run's lock, as far as this container sees them."""
    others = (each for each in psutil.process_iter() if each.pid != os.getpid())
    return [each.pid for each in others if _has_open(each, str(lock_file))]


def _has_open(process: psutil.Process, file: str) -> bool:
    with suppress(OSError, psutil.Error):  # it ended meanwhile, or is another user's
        return any(each.path == file for each in process.open_files())
    return False


def _orphaned(pids: list[int]) -> bool:
    """Whether only stubs are left: they end with tritonserver, unless they hang."""
    names = []
    for pid in pids:
        with suppress(OSError, psutil.Error):
            names.append(psutil.Process(pid).name())
    return bool(names) and set(names) == {ORPHAN}


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _take_new(lock_file: Path) -> int:
    """Create and take a lock. Someone's `remove_leftovers` may come in between; then once more."""
    while True:
        lock = os.open(lock_file, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)


def remove_if_over(lock_file: Path) -> bool:
    """Remove what is left of a run, if it is over.

    Returns:
        True if nothing is left.
    """
    try:
        lock = os.open(lock_file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:  # another user's
        return False
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(lock_file, Path(os.fsdecode(os.read(lock, 4096))))
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _remove(lock_file: Path, folder: Path) -> None:
    prefix = lock_file.name.removesuffix("lock")
    if folder.name == prefix.rstrip("_"):  # else its maker died before it wrote the path
        shutil.rmtree(folder, ignore_errors=True)
    for segment in SEGMENTS.glob(f"{prefix}*"):
        if segment != lock_file:
            segment.unlink(missing_ok=True)
    lock_file.unlink(missing_ok=True)  # last: who is killed here leaves it for the next one


def stand_guard(lock_file: Path) -> None:
    """Wait for the watcher's end; then no process of its run lives on for long."""
    sys.stdin.buffer.read()
    while not wait_until_over(lock_file, MERCY):
        _kill(holders(lock_file))


if __name__ == "__main__":
    stand_guard(Path(sys.argv[1]))
