"""A rank's program: load the shard, then for each batch read, compute and report.

It is forked by the forkserver and ends when its socket does; the kernel kills it when the
forkserver dies. A rank that raised reports and exits: its peers may already wait for it in a
collective.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from ..machine.parent import die_with
from ..model.errors import EngineFailed, InvalidInput, PythonMpError, RequestFailed, describe
from ..model.rank_spec import RankSpec
from ..model.request import Array
from ..wire.arena import Arena
from ..wire.message import Kind, Message, Placed, Refusal
from ..wire.sockets import Connection
from .engines import Engine, load

log = logging.getLogger(__name__)

_BATCHS_DOING = (
    *(RequestFailed, ValueError, TypeError, LookupError, ArithmeticError, AssertionError),
)
"""What Python raises for values. A device in trouble raises RuntimeError."""
_MOST_TRACEBACK = 16 << 10
_PR_SET_NAME = 15


def run(spec: RankSpec) -> int:
    """A rank's life, in the process that it was forked into; the exit code."""
    die_with(spec.parent)
    os.setpgid(0, 0)
    _call_it(f"rank {spec.replica}.{spec.rank}")
    os.environ |= spec.environment()
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)
    logging.basicConfig(level=logging.INFO, format=f"rank {spec.rank}: %(message)s")
    for fd in (spec.control_fd, spec.arena_fd, spec.region_fd, spec.stacks_fd):
        os.set_inheritable(fd, False)
    _write_stacks_to(spec.stacks_fd)
    connection = Connection(socket.socket(fileno=spec.control_fd))
    # A process that the user's module forks must not speak, or hear, in our place.
    os.register_at_fork(after_in_child=connection.close)
    arena = Arena(spec.arena_fd, spec.slots, spec.half)
    try:
        engine = load(spec)
    except BaseException as error:  # The user's module may raise anything.
        if not isinstance(error, PythonMpError):
            log.error("loading raised\n%s", _traceback())
        with contextlib.suppress(OSError):  # A peer failed too, and the front has hung up.
            connection.send(Message(Kind.FAILED, text=describe(error)))
        return 1
    try:
        connection.send(
            Message(Kind.READY, text=json.dumps({"blocks": engine.blocks, **engine.phases}))
        )
        return serve(spec, connection, arena, engine)
    except OSError:
        return 0  # The front has hung up.


def serve(spec: RankSpec, connection: Connection, arena: Arena, engine: Engine) -> int:
    """Batches, until the socket's end of file; the exit code."""
    flying: deque[_Flying] = deque()
    while True:
        try:
            message = connection.receive(wait=not flying and not engine.improve())
        except BlockingIOError:
            if flying and not _land(flying.popleft(), spec, connection, arena, engine):
                return 1
            continue
        if message is None:
            engine.close()
            return 0
        inputs = arena.read_inputs(message.slot, message.tensors)
        began, waited = time.perf_counter_ns(), engine.waited_ns()
        try:
            landing = engine.begin(inputs)
        except BaseException as error:  # The user's module may raise anything.
            if not _fail(error, message.batch, connection, engine):
                return 1
            continue
        flying.append(_Flying(message.batch, message.slot, began, waited, landing))
        full = len(flying) >= engine.depth
        if full and not _land(flying.popleft(), spec, connection, arena, engine):
            return 1


class _Flying(NamedTuple):
    """A batch that is being computed."""

    batch: int
    slot: int
    began_ns: int
    waited_ns: int
    landing: Callable[[], Mapping[str, Array]]


def _land(
    flying: _Flying, spec: RankSpec, connection: Connection, arena: Arena, engine: Engine
) -> bool:
    """Waits for the batch and tells of it; False where that was the rank's end."""
    try:
        outputs = flying.landing()
    except BaseException as error:
        return _fail(error, flying.batch, connection, engine)
    placed, text = _place(arena, flying.slot, outputs) if spec.answers else ({}, "")
    connection.send(
        Message(
            Kind.DONE,
            flying.slot,
            flying.batch,
            compute_ns=time.perf_counter_ns() - flying.began_ns,
            waited_ns=engine.waited_ns() - flying.waited_ns,
            tensors=placed,
            text=text,
            padded=engine.padded,
        )
    )
    return True


def _fail(error: BaseException, batch: int, connection: Connection, engine: Engine) -> bool:
    """Tells why the batch is not computed; False where the rank cannot go on."""
    if refusal := _refusal(error, engine):
        connection.send(Message(Kind.REFUSED, batch=batch, text=refusal.encode()))
        return True
    log.error("batch %d raised\n%s", batch, _traceback())
    connection.send(Message(Kind.FAILED, batch=batch, text=describe(error)))
    return False


def _refusal(error: BaseException, engine: Engine) -> Refusal | None:
    """Where the error is the batch's doing and no peer waits for us, nothing but it is lost: the
    peers, with the same inputs, refuse as well. If they do not, the front ends the group."""
    if isinstance(error, InvalidInput):
        return Refusal("InvalidInput", describe(error), error.sequences)
    if isinstance(error, _BATCHS_DOING) and not isinstance(error, EngineFailed):
        return Refusal("RequestFailed", describe(error)) if engine.is_apart() else None
    return None


def _traceback() -> str:
    """Of what is being handled; its text may hold a whole tensor."""
    return traceback.format_exc()[:_MOST_TRACEBACK]


def _place(
    arena: Arena, slot: int, outputs: Mapping[str, Array]
) -> tuple[Mapping[str, Placed], str]:
    """Where they lie, or why they do not fit."""
    try:
        return arena.write_outputs(slot, outputs), ""
    except InvalidInput as error:
        return {}, str(error)


def exit_at_once(exit_code: int) -> NoReturn:
    """Ends the process, not by way of torch's destructors: they take most of a second."""
    logging.shutdown()
    os._exit(exit_code)


def _write_stacks_to(descriptor: int) -> None:
    """On a crash, and when the front asks because nothing gets on; also of a thread that waits."""
    faulthandler.enable(descriptor)
    faulthandler.register(signal.SIGUSR1, descriptor)


def _call_it(name: str) -> None:
    """For ps and top; at most 15 characters."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())
