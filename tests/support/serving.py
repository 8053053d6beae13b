"""A real Triton for tests, and proof that it leaves nothing behind."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from server.endpoints import Endpoints
from server.process.launch import TritonServer
from server.process.run import SEGMENTS

Serve = Callable[..., AbstractContextManager[TritonServer]]


def processes_of(folder: Path) -> dict[int, str]:
    """The living processes of the run with this private folder: pid to command line."""
    wanted = f"PYTHON_MP_RUNTIME_DIR={folder}\0".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes() + b"\0":
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(process.name)] = command.decode(errors="replace")
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def assert_nothing_left(prefix: str, folder: Path) -> None:
    """No process, no shared memory, no file of that run."""
    assert processes_of(folder) == {}
    assert [segment.name for segment in SEGMENTS.glob(f"{prefix}*")] == []
    assert not folder.exists()


@contextmanager
def serving(repository: Path, **settings: Any) -> Iterator[TritonServer]:
    """A server over `repository`, ready, on free ports; takes the attributes of Settings."""
    with TritonServer(repository, **{"endpoints": Endpoints.free(), **settings}) as server:
        run = server.run
        assert os.getpid() not in processes_of(run.folder)
        assert processes_of(run.folder), "the environment does not name the run's folder"
        yield server
    assert_nothing_left(run.prefix, run.folder)
