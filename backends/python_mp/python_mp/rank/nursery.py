"""Where ranks come from: a process that has imported the engine forks them.

Importing torch takes seconds of every rank's start; a fork takes milliseconds and shares the pages.
Nothing else happens here, so that there is no thread and no CUDA context for a fork to break.

    python -m python_mp.rank.nursery ENGINE SOCKET PARENT SERVER

A stub can outlive a tritonserver that was killed, stuck in a call to it. So the nursery watches the
server too (a pid, 0 for none) and then ends the stub, its parent, and thereby itself and the ranks.

It says when it is ready. Then orders come as JSON, a datagram each: a RankSpec with its four
descriptors, answered by the new rank's pid; or a pid, whose end is waited for and answered by its
exit code.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ..rank_spec import RankSpec
from . import worker

_MAX_ORDER = 1 << 20
_GRACE_SECONDS = 1.0
_PR_SET_CHILD_SUBREAPER = 36
_ranks: set[int] = set()


def main(engine: str, descriptor: int, parent: int, server: int) -> None:
    """Serves orders until the socket's end of file."""
    worker.die_with(parent)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends us.
    orders = socket.socket(fileno=descriptor)
    orders.set_inheritable(False)
    import_module(f"python_mp.rank.engines.{engine}")
    orders.send(b"ready")
    watched: list[Any] = [orders, os.pidfd_open(server)] if server else [orders]
    while True:
        if orders not in select.select(watched, [], [])[0]:
            time.sleep(_GRACE_SECONDS)  # Mostly the stub ends by itself, and we with it.
            os.kill(parent, signal.SIGKILL)
        order, descriptors, _, _ = socket.recv_fds(orders, _MAX_ORDER, 4)
        if not order:
            return
        raw = json.loads(order)
        answer = _reap(raw) if isinstance(raw, int) else _fork(order, descriptors, orders)
        orders.send(str(answer).encode())


def _fork(order: bytes, descriptors: list[int], orders: socket.socket) -> int:
    control, arena, region, stacks = descriptors
    spec = RankSpec.from_json(order.decode())
    spec = replace(spec, parent=os.getpid(), control_fd=control, arena_fd=arena)
    spec = replace(spec, region_fd=region, stacks_fd=stacks)
    pid = os.fork()
    if not pid:
        orders.close()
        worker.leave(worker.run(spec))
    _ranks.add(pid)
    with suppress(ProcessLookupError, PermissionError):  # It did so itself, and ended or exec'd.
        os.setpgid(pid, pid)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def _reap(pid: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _ranks.discard(pid)
    _kill_orphans()
    return code


def _kill_orphans() -> None:
    """What a rank has started, however it was detached, comes to us when its parent ends."""
    while orphans := set(_children()) - _ranks:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _children() -> list[int]:
    pid = os.getpid()
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
    worker.leave(0)
