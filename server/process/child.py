"""Becomes tritonserver. A program of its own, between the watcher's fork and tritonserver's exec:
what must be set in the child cannot safely be set by a thread of the parent.

usage: child.py PARENT_PID DESCRIPTOR

The descriptor's file holds tritonserver's command, since the list of processes shows arguments.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
# Deeply nested JSON and bodies in very many chunks overflow the usual 8 MiB; 1 GiB costs only
# address space, unless the machine counts that too.
STACK_BYTES = 1 << 30


def hand_over(command: list[str]) -> int:
    """A descriptor to start this program with."""
    file = os.memfd_create("command")
    os.write(file, "\0".join(command).encode(errors="surrogateescape"))
    os.lseek(file, 0, os.SEEK_SET)
    return file


def take_over(file: int) -> list[str]:
    """The command behind a descriptor, which is closed."""
    with open(file, "rb") as content:
        return content.read().decode(errors="surrogateescape").split("\0")


def raise_stack_limit() -> None:
    """Raise the soft limit of the stack as far as the hard limit allows."""
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))


def main(parent: int, command: list[str]) -> None:
    """Replace this process by `command`, which drains as soon as process `parent` dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    raise_stack_limit()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # the watcher's death must not end a log line
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), take_over(int(sys.argv[2])))
