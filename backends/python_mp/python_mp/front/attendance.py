"""A thread that waits for its answers does the supervisor's work meanwhile: an answer that comes at
once is spared the way through another thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from .group import Group
from .inbox import Messages


def attend(
    group: Group | None,
    begin: Callable[[], None],
    handle: Callable[[Group, Messages], None],
    is_done: Callable[[], bool],
    seconds: float,
) -> None:
    """Calls `begin`, and hands what the group then says to `handle`, until `is_done()` or the time
    is up; without a group it only begins."""
    with ExitStack() as stack:
        attended = group if group and _is_ours(group, stack) else None
        begin()
        deadline = time.perf_counter() + seconds
        while attended and not is_done() and (left := deadline - time.perf_counter()) > 0:
            messages = attended.inbox.poll(left)
            if messages is None:
                return
            handle(attended, messages)


def _is_ours(group: Group, stack: ExitStack) -> bool:
    """Whether this thread gets what it says until the stack is left."""
    try:
        return stack.enter_context(group.inbox.attended())
    except (OSError, ValueError):  # It has ended, or the kernel cannot; the supervisor attends.
        return False
