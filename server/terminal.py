"""The terminal the server was started in."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PATIENCE = 1.0  # seconds for a reader that is slow


class Lines:
    """Shows lines. Whoever stops reading them, or has no room for them, loses them, and holds up
    nothing.

    Unbuffered, because a signal handler may come in the middle of another line.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._patience = PATIENCE

    def __call__(self, text: str) -> None:
        line = f"{text}\n".encode(errors="replace")
        room = select.poll()  # each thread needs one of its own
        room.register(self._descriptor, select.POLLOUT)
        with suppress(OSError):
            for start in range(0, len(line), select.PIPE_BUF):
                if not room.poll(1000 * self._patience):
                    self._patience = 0.0  # until it reads again
                    return
                os.write(self._descriptor, line[start : start + select.PIPE_BUF])
            self._patience = PATIENCE


@contextmanager
def foreground() -> Iterator[None]:
    """Be the terminal's foreground job alone, so that Ctrl-C comes here and not to make as well.

    make would die of it and report an error, although the server drained and exited with 0. Does
    nothing without a terminal, in the background, or where the shell made this a job already.
    """
    if not _is_part_of_foreground_job():
        yield
        return
    shell_job = os.getpgrp()
    os.setpgid(0, 0)
    ours = [signal.SIGTTOU, signal.SIGTTIN, signal.SIGTSTP]  # nobody could continue us from here
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ours}
    os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(sys.stdin.fileno(), shell_job)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_part_of_foreground_job() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp() != os.getpid()
    except (OSError, ValueError, AttributeError):
        return False
