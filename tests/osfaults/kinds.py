"""Kinds of calls, of which CI tries one each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tests.osfaults.cases import Case

KINDS = {
    "a file is opened": ("openat",),
    "a file is looked at": ("newfstatat", "fstat", "access", "readlink", "statx", "getdents64"),
    "a file is read": ("read", "pread64"),
    "a file is written": ("write", "pwrite64", "ftruncate", "sendfile"),
    "a folder changes": ("rename", "mkdir", "symlink", "unlink", "unlinkat", "rmdir", "chmod"),
    "a descriptor is made": (
        *("socketpair", "pipe2", "epoll_create1", "eventfd2", "memfd_create", "pidfd_open"),
        *("socket", "fcntl", "dup2", "inotify_init1"),
    ),
    "something is said": ("sendto", "sendmsg"),
    "something is heard": ("recvfrom", "recvmsg"),
    "a connection is made": ("connect", "accept4", "bind"),
    "a thread or process is made": ("clone3", "clone", "vfork", "fork"),
    "something is waited for": ("epoll_ctl", "epoll_wait", "poll", "pselect6", "wait4", "waitid"),
    "memory is asked for": ("mmap", "mprotect", "mremap", "madvise", "munmap"),
}


def one_of_each(cases: Iterable[Case], phases: Sequence[str]) -> Iterator[Case]:
    """A call of each kind that is among the cases, in one phase after the other."""
    known = list(cases)
    for number, calls in enumerate(KINDS.values()):
        turn = {phase: (phases.index(phase) - number) % len(phases) for phase in phases}
        of_kind = [case for case in known if case.call in calls]
        if of_kind:
            yield min(of_kind, key=lambda case: (turn[case.phase], calls.index(case.call)))
