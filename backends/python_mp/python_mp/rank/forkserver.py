"""Where ranks come from: a process that has imported the engine, and what a checkpoint's module is
made of, forks them.

Importing torch takes seconds of every rank's start; a fork takes milliseconds and shares the pages.
Nothing else happens here, no user's code runs, so that there is no thread and no CUDA context for a
fork to break.

    python -m python_mp.rank.forkserver ENGINE FOLDER SOCKET PARENT SERVER

A stub can outlive a tritonserver that was killed, stuck in a call to it. So the forkserver watches
the server too (a pid, 0 for none) and then kills the stub, its parent, and thereby itself and the
ranks.

It says when it is ready. Then orders come as JSON, a datagram each: a RankSpec with its four
descriptors, answered by the new rank's pid; or the pid of a rank that has ended, answered by its
exit code. What the kernel refuses is answered by its errno. No order keeps it for longer than a
second or two, so that its front can tell when it hangs.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ..machine.parent import die_with
from ..model.paths import present
from ..model.rank_spec import RankSpec
from . import main as rank

_MAX_ORDER = 1 << 20
_DESCRIPTORS = 4
_GRACE_SECONDS = 1.0
_REAP_SECONDS = 1.0
_PR_SET_CHILD_SUBREAPER = 36
_ranks: set[int] = set()
_stuck: set[int] = set()
"""Children that hang in the kernel, or that a debugger has. Nobody waits for them any more."""


def serve(engine: str, folder: Path, descriptor: int, parent: int, server: int) -> None:
    """Serves orders for ranks of the version directory, until the socket's end of file."""
    die_with(parent)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends us.
    orders = socket.socket(fileno=descriptor)
    orders.set_inheritable(False)
    gc.disable()  # What is imported stays: looking for garbage in it takes a fifth of the time.
    import_module(f"python_mp.rank.engines.{engine}")
    if present(folder, "config.json"):
        import_module("python_mp.sharding.source").prepare(folder)
    gc.freeze()  # Collecting writes to each object's page: ranks would have their own.
    gc.enable()
    orders.send(b"ready")
    watched: list[Any] = [orders, os.pidfd_open(server)] if server else [orders]
    while True:
        if orders not in select.select(watched, [], [])[0]:
            time.sleep(_GRACE_SECONDS)  # Mostly the stub ends by itself, and we with it.
            os.kill(parent, signal.SIGKILL)
        order, descriptors, _, _ = socket.recv_fds(orders, _MAX_ORDER, _DESCRIPTORS)
        if not order:
            return
        orders.send(json.dumps(_obey(order, descriptors, orders)).encode())


def _obey(order: bytes, descriptors: list[int], orders: socket.socket) -> dict[str, int | None]:
    raw = json.loads(order)
    try:
        if isinstance(raw, int):
            return {"code": _reap(raw)}
        return {"pid": _fork(order, descriptors, orders)}
    except OSError as error:
        return {"errno": error.errno}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(order: bytes, descriptors: list[int], orders: socket.socket) -> int:
    if len(descriptors) < _DESCRIPTORS:  # The kernel drops what there is no room for.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    control, arena, region, stacks = descriptors
    spec = RankSpec.from_json(order.decode())
    spec = replace(spec, parent=os.getpid(), control_fd=control, arena_fd=arena)
    spec = replace(spec, region_fd=region, stacks_fd=stacks)
    pid = os.fork()
    if not pid:
        _become_a_rank(spec, orders)
    _ranks.add(pid)
    with suppress(ProcessLookupError, PermissionError):  # It did so itself, and ended or exec'd.
        os.setpgid(pid, pid)
    return pid


def _become_a_rank(spec: RankSpec, orders: socket.socket) -> NoReturn:
    """Nothing that is raised may lead back to the forkserver's loop, in the child."""
    code = 1
    try:
        orders.close()
        code = rank.run(spec)
    except BaseException:
        traceback.print_exc()
    finally:
        rank.exit_at_once(code)


def _reap(pid: int) -> int | None:
    """The exit code; None if it hangs in the kernel, or a debugger has it."""
    code = _wait(pid)
    _ranks.discard(pid)  # Else it is an orphan now.
    _kill_orphans()
    return code


def _wait(pid: int, seconds: float = _REAP_SECONDS) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def _kill_orphans() -> None:
    """What a rank has started, however it was detached, comes to us when its parent ends."""
    deadline = time.monotonic() + _REAP_SECONDS
    while (orphans := set(_children()) - _ranks - _stuck) and time.monotonic() < deadline:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            _wait(pid, 0.01)
    _stuck.update(orphans)
    _stuck.difference_update([pid for pid in _stuck if _wait(pid, 0) is not None])


def _children() -> list[int]:
    pid = os.getpid()
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
    rank.exit_at_once(0)
