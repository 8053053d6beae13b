"""What is tried: each call that a trace of a phase shows, with each error of its manual page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.osfaults.manual import ONCE_ONLY, errors_of
from tests.osfaults.strace import Call

_TARGET = re.compile(r'"([^"]+)"|<([^>]+)>')
_PLAIN = (
    (r"/\S*/(site-packages|lib/python3|python_mp/python_mp|server)/.*|\S*\.pyc?$", "a module"),
    (r"^/tmp/[^/]*/", "temp/"),
    (r"\d+", "N"),
)


@dataclass(frozen=True)
class Case:
    phase: str
    call: str
    error: str
    when: int = 0
    """0: every such call fails for a while; else only the one of this number in each thread."""
    target: str = ""
    """Of the one call."""

    def __str__(self) -> str:
        once = f" once, {self.target} ({self.when})" if self.when else ""
        return f"{self.phase}: {self.call} {self.error}{once}"


def lasting(phase: str, calls: Iterable[Call]) -> Iterator[Case]:
    """Every call of the kind fails until the cause ends."""
    for call in sorted({call for _, call, _ in calls} - ONCE_ONLY.keys()):
        for error in errors_of(call):
            yield Case(phase, call, error)


def single(phase: str, calls: Iterable[Call]) -> Iterator[Case]:
    """One call fails: of each kind the first one of each target."""
    numbers: Counter[tuple[int, str]] = Counter()
    seen: set[tuple[str, object]] = set()
    for thread, call, arguments in calls:
        numbers[thread, call] += 1
        when, target = numbers[thread, call], _target(arguments)
        if (call, target) in seen or (call, when) in seen:
            continue
        seen |= {(call, target), (call, when)}
        for error in errors_of(call):
            yield Case(phase, call, error, when, target)


def _target(arguments: str) -> str:
    """What the call is about, without numbers that differ from run to run."""
    found = next((a or b for a, b in _TARGET.findall(arguments) if a or "/" not in b), "")
    found = found or next((b for _, b in _TARGET.findall(arguments)), "memory")
    for pattern, plain in _PLAIN:
        found = re.sub(pattern, plain, found)
    return found
