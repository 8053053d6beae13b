"""How fast text is generated on processors: every row has a goal, and says whether it is met.

python -m benchmarks generation          all of it, about ten minutes
python -m benchmarks generation.NAME     one part: see ROWS
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from . import alone, behind_triton, crowds, goals, nothing_computed, whole_servers

ROWS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "triton": behind_triton.run,
    "served": whole_servers.run,
    "alone": alone.run,
    "long_prompt": crowds.long_prompt,
    "preemption": crowds.preemption,
    "prefix": crowds.shared_prefix,
    "nothing": nothing_computed.run,
}


def run() -> Iterator[dict[str, Any]]:
    """A part that fails says so, and the others go on."""
    for name, part in ROWS.items():
        try:
            yield from part()
        except Exception as error:
            yield goals.not_run(name, f"{type(error).__name__}: {error}")
