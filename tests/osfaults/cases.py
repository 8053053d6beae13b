"""What is tried: each call that a trace of a phase shows, with each error of its manual page.

manual.txt has a line a call: its name, and those of ENOSPC, EROFS, EMFILE, ENOMEM, EIO, EAGAIN and
EINTR that its page in section 2 lists, where that refers to another page (pread to read, wait4 to
waitpid, ...) the other one's.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

_LINES = Path(__file__).with_name("manual.txt").read_text().splitlines()
MANUAL = {call: tuple(errors) for call, *errors in map(str.split, _LINES)}

# strace lets a call fail without making it; here that would be what no kernel does.
NOT_INJECTED = {
    "futex": "strace cannot tell waits, which may fail so, from wake-ups, which cannot",
    "brk": "the kernel answers with the old end of the heap then, not with an error",
    "munmap": "it fails where it cuts a mapping in two; glibc ends a process whose stacks stay",
    "execve": "it is no longer the front's or the watcher's process that makes it",
}
MOST_SINGLE = 8
ONCE_ONLY = {
    "close": "in truth the descriptor is closed, whatever close says; here it stays open",
}
# Of these `make test` tries some, most telling ones first.
_TELLING = (
    *("openat", "socketpair", "clone3", "recvmsg", "write", "epoll_ctl", "sendmsg", "newfstatat"),
    *("mmap", "read", "rename", "memfd_create", "pidfd_open", "poll", "connect", "wait4"),
)


@dataclass(frozen=True)
class Case:
    phase: str
    call: str
    error: str
    when: int = 0
    """0: every such call fails for a while; else only the one of this number in each thread."""

    def __str__(self) -> str:
        return f"{self.phase}: {self.call} {self.error} {self.when or ''}"


Make = Callable[[str, Iterable[str]], Iterator[Case]]


def errors_of(call: str) -> tuple[str, ...]:
    """Raises KeyError for a call that manual.txt lacks."""
    return () if call in NOT_INJECTED else MANUAL[call]


def lasting(phase: str, calls: Iterable[str]) -> Iterator[Case]:
    """Every call of the kind fails until the cause ends."""
    for call in sorted({*calls} - ONCE_ONLY.keys()):
        for error in errors_of(call):
            yield Case(phase, call, error)


def single(phase: str, calls: Iterable[str]) -> Iterator[Case]:
    """One call alone fails: the first, the second, ..."""
    for call, times in Counter(calls).items():
        for error, when in product(errors_of(call), range(1, min(times, MOST_SINGLE) + 1)):
            yield Case(phase, call, error, when)


def telling(cases: Sequence[Case], most: int) -> Iterator[Case]:
    """One of each of the first calls, in one phase after the other."""
    found = [[case for case in cases if case.call == call] for call in _TELLING]
    for number, of_call in enumerate([each for each in found if each][:most]):
        yield of_call[number * len(of_call) // most]
