"""What the product imports of the standard library, as the simulated machine has it.

Only what waits, tells the time, or concerns processes is simulated; all else is the real thing, the
sockets too: their buffers fill, their other ends close.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from .machine import Machine, Process, SimThread

_SMALL_BUFFER = 1  # The kernel makes it 4608 bytes: a few messages.
_BACKLOG = 2
_RETRY = 0.001
_TIMEOUTS = {socket.SO_RCVTIMEO: select.POLLIN, socket.SO_SNDTIMEO: select.POLLOUT}


class _Holder:
    machine: Machine


here = _Holder()
"""On which machine the product runs now."""


def _park(**how: Any) -> bool:
    return here.machine.park(**how)


class Stand(ModuleType):
    """A module in the place of a real one, which has whatever is not said here."""

    def __init__(self, real: ModuleType, refused: Iterable[str] = (), **names: Any) -> None:
        super().__init__(real.__name__)
        self._real, self._refused = real, frozenset(refused)
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_refused"]:
            raise AttributeError(f"{self.__name__}.{name} is not simulated")
        return getattr(self.__dict__["_real"], name)


# -- time ----------------------------------------------------------------------------------------


def _sleep(seconds: float) -> None:
    _park(timeout=seconds)


def _clock() -> float:
    return here.machine.clock()


def _clock_ns() -> int:
    return int(here.machine.clock() * 1e9)


sim_time = Stand(
    time,
    ("time_ns", "monotonic_ns"),
    sleep=_sleep,
    time=_clock,
    monotonic=_clock,
    perf_counter=_clock,
    perf_counter_ns=_clock_ns,
)


# -- threading -----------------------------------------------------------------------------------


class Lock:
    def __init__(self) -> None:
        self._owner: SimThread | None = None

    def __enter__(self) -> None:
        here.machine.wobble()
        while not self._free():
            _park(until=self._free)
        self._owner = here.machine._running

    def __exit__(self, *_: object) -> None:
        self._owner = None

    def _free(self) -> bool:
        return self._owner is None or not self._owner.process.alive


class Event:
    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            _park(until=self.is_set, timeout=timeout)
        return self._set


class Condition:
    """Wakes all that wait, whatever number is asked for."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._told = 0

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__()

    def wait(self, timeout: float | None = None) -> bool:
        before = self._told
        self._lock.__exit__()
        told = _park(until=lambda: self._told > before, timeout=timeout)
        self._lock.__enter__()
        return told

    def notify(self, n: int = 1) -> None:
        self._told += 1


class Thread:
    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] = lambda: None,
        name: str = "",
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self.name, self.daemon = name or getattr(target, "__qualname__", "thread"), daemon
        self._target = lambda: target(*args, **(kwargs or {}))
        self._thread: SimThread | None = None

    @property
    def ident(self) -> int | None:
        return id(self._thread) if self._thread else None

    def start(self) -> None:
        process = here.machine.process
        assert process is not None
        self._thread = process.run(self._target, self.name)

    def is_alive(self) -> bool:
        return self._thread is not None and not self._thread.done

    def join(self, timeout: float | None = None) -> None:
        if self.is_alive():
            _park(until=lambda: not self.is_alive(), timeout=timeout)


_NO_THREADS = ("Semaphore", "BoundedSemaphore", "Barrier", "Timer", "local", "RLock")
sim_threading = Stand(
    threading,
    (*_NO_THREADS, "current_thread", "get_ident"),
    Lock=Lock,
    Condition=Condition,
    Event=Event,
    Thread=Thread,
)


# -- sockets -------------------------------------------------------------------------------------


class Socket(socket.socket):
    """A real socket with small buffers, which waits in simulated time."""

    def __init__(self, *arguments: Any, process: Process | None = None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        super().setblocking(False)
        super().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL_BUFFER)
        self._patience: float | None = None
        self._kernel: dict[int, float] = {}
        self._shut = False
        if owner := process or here.machine.process:
            owner.own(self)

    def settimeout(self, value: float | None) -> None:
        self._patience = value

    def setsockopt(self, level: int, option: int, value: Any, *more: Any) -> None:
        """The kernel's time-outs are of use only to calls that wait; buffers stay small."""
        if option in _TIMEOUTS:
            whole, micro = struct.unpack("@ll", value)
            self._kernel[_TIMEOUTS[option]] = whole + micro / 1e6

    def listen(self, backlog: int = _BACKLOG) -> None:
        super().listen(min(backlog, _BACKLOG))

    def shutdown(self, how: int) -> None:
        super().shutdown(how)
        self._shut = True

    def accept(self) -> tuple[Socket, Any]:
        descriptor, address = self._wait(select.POLLIN, self._accept_now)
        return Socket(self.family, self.type, self.proto, fileno=descriptor), address

    def _accept_now(self) -> tuple[int, Any]:
        if self._shut:  # A call that does not wait would say EAGAIN.
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super()._accept()  # type: ignore[misc, no-any-return]

    def connect(self, address: Any) -> None:
        """A full backlog says EAGAIN, and nothing tells when it is no more."""
        self._wait(select.POLLOUT, super().connect, address, poll=_RETRY)

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self._wait(select.POLLIN, super().recv, size, flags, flags=flags)

    def recvmsg(self, *arguments: Any) -> Any:
        flags = arguments[2] if len(arguments) > 2 else 0
        return self._wait(select.POLLIN, super().recvmsg, *arguments, flags=flags)

    def send(self, data: Any, flags: int = 0) -> int:
        return self._wait(select.POLLOUT, super().send, data, flags, flags=flags)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, *more: Any) -> int:
        call = super().sendmsg
        return self._wait(select.POLLOUT, call, buffers, ancdata, flags, *more, flags=flags)

    def _wait(
        self,
        events: int,
        call: Callable[..., Any],
        *arguments: Any,
        flags: int = 0,
        poll: float | None = None,
    ) -> Any:
        """As the call would that waits; with `poll`, by trying again that often."""
        here.machine.wobble()
        own = self._patience
        limit = own if own is not None else self._kernel.get(events)
        end = None if limit is None else here.machine.now + limit
        while True:
            try:
                return call(*arguments)
            except BlockingIOError:
                if flags & socket.MSG_DONTWAIT:
                    raise
                if end is not None and here.machine.now >= end:
                    if own is None:
                        raise
                    raise TimeoutError("timed out") from None
            if poll:
                _park(timeout=poll)
            else:
                left = None if end is None else end - here.machine.now
                _park(descriptors={self.fileno(): events}, timeout=left)


def _socketpair(*arguments: Any) -> tuple[Socket, Socket]:
    pair = socket.socketpair(*arguments)
    ours, theirs = (Socket(fileno=each.detach()) for each in pair)
    return ours, theirs


sim_socket = Stand(socket, socket=Socket, socketpair=_socketpair)


# -- select --------------------------------------------------------------------------------------


class Epoll:
    def __init__(self, *arguments: Any) -> None:
        self._real = select.epoll(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        here.machine.wobble()
        events = self._real.poll(0, maxevents)
        if events or timeout == 0:
            return events
        limit = None if timeout is None or timeout < 0 else timeout
        _park(descriptors={self._real.fileno(): select.POLLIN}, timeout=limit)
        return self._real.poll(0, maxevents)


class Poll:
    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}

    def register(self, each: Any, events: int = select.POLLIN | select.POLLOUT) -> None:
        self._wanted[each if isinstance(each, int) else each.fileno()] = events

    def unregister(self, each: Any) -> None:
        del self._wanted[each if isinstance(each, int) else each.fileno()]

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        real = select.poll()
        for descriptor, events in self._wanted.items():
            real.register(descriptor, events)
        said = real.poll(0)
        if said or milliseconds == 0:
            return said
        limit = None if milliseconds is None or milliseconds < 0 else milliseconds / 1e3
        _park(descriptors=self._wanted, timeout=limit)
        return real.poll(0)


sim_select = Stand(select, ("select",), epoll=Epoll, poll=Poll)


# -- processes -----------------------------------------------------------------------------------


def _process(pid: int) -> Process:
    process = here.machine.processes.get(pid)
    if process is None:
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
    return process


def _getpid() -> int:
    process = here.machine.process
    return process.pid if process else os.getpid()


def _kill(pid: int, number: int) -> None:
    process = _process(pid)
    if number == signal.SIGCONT:
        process.stopped = False
    elif process.alive and number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        process.end(-number)


def _exit(code: int) -> None:
    process = here.machine.process
    assert process is not None
    process.end(code)


_pidfds: dict[int, Process] = {}


def _pidfd_open(pid: int) -> int:
    descriptor = os.dup(_process(pid).ended)
    _pidfds[descriptor] = _process(pid)
    return _own(descriptor)


def _pidfd_send_signal(descriptor: int, number: int, *_: Any) -> None:
    process = _pidfds[descriptor]
    if not process.alive:
        raise ProcessLookupError(errno.ESRCH, "it has ended")
    _kill(process.pid, number)


def _own(descriptor: int) -> int:
    if process := here.machine.process:
        process.descriptors.add(descriptor)
    return descriptor


def _opens(call: Callable[..., int]) -> Callable[..., int]:
    def opened(*arguments: Any, **more: Any) -> int:
        process = here.machine.process
        if process and process.missing_descriptors:
            process.missing_descriptors -= 1
            process.lacked = here.machine.now
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return _own(call(*arguments, **more))

    return opened


def _close(descriptor: int) -> None:
    if process := here.machine.process:
        if not process.alive:
            return
        process.descriptors.discard(descriptor)
    os.close(descriptor)


sim_os = Stand(
    os,
    ("fork", "waitpid", "posix_spawn"),
    getpid=_getpid,
    kill=_kill,
    killpg=_kill,
    _exit=_exit,
    pidfd_open=_pidfd_open,
    memfd_create=_opens(os.memfd_create),
    open=_opens(os.open),
    close=_close,
)
sim_signal = Stand(signal, ("signal",), pidfd_send_signal=_pidfd_send_signal)


class Popen:
    """Only the process that starts ranks is started this way."""

    start: Callable[[Popen, list[str], Iterable[int]], Process]

    def __init__(self, arguments: list[str], *, pass_fds: Iterable[int] = (), **_: Any) -> None:
        self.process = type(self).start(self, arguments, pass_fds)
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exit_code

    def wait(self, timeout: float | None = None) -> int:
        if self.process.alive and not _park(until=lambda: not self.process.alive, timeout=timeout):
            raise subprocess.TimeoutExpired("simulated", timeout or 0.0)
        assert self.process.exit_code is not None
        return self.process.exit_code

    def kill(self) -> None:
        self.process.end()


sim_subprocess = Stand(subprocess, ("run", "call", "check_output"), Popen=Popen)

_STANDS = sim_time, sim_threading, sim_socket, sim_select, sim_os, sim_signal, sim_subprocess
STANDS = {each.__name__: each for each in _STANDS}
