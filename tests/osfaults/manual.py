"""Which errors the manual pages name for each system call: Linux man-pages 6.03, section 2.

manual.txt has a line a call: its name, and those of `ERRORS` that its page lists, where that refers
to another page (pread to read, wait4 to waitpid, ...) the other one's.
"""

from pathlib import Path

ERRORS = ("ENOSPC", "EROFS", "EMFILE", "ENOMEM", "EIO", "EAGAIN", "EINTR")
_LINES = Path(__file__).with_suffix(".txt").read_text().splitlines()
MANUAL = {call: tuple(errors) for call, *errors in map(str.split, _LINES)}

# strace lets a call fail without making it; here that would be what no kernel does.
NOT_INJECTED = {
    "futex": "strace cannot tell waits, which may fail so, from wake-ups, which cannot",
    "brk": "the kernel answers with the old end of the heap then, not with an error",
    "munmap": "it fails where it cuts a mapping in two; glibc ends a process whose stacks stay",
    "execve": "it is no longer the front's or the watcher's process that makes it",
}

ONCE_ONLY = {
    "close": "in truth the descriptor is closed, whatever close says; here it stays open",
}


def errors_of(call: str) -> tuple[str, ...]:
    """Raises KeyError for a call that manual.txt lacks."""
    return () if call in NOT_INJECTED else MANUAL[call]
