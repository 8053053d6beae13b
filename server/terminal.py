"""The terminal the server was started in."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
