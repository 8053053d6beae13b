"""What was measured as a table, and which candidates nothing beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from build_scripts.plan.candidates import Choice
from clients.closed_loop import Load


@dataclass(frozen=True)
class Row:
    """A candidate: what was measured of it, or why it is `rejected`."""

    choice: Choice
    load: Load | None
    rejected: str = ""


def front(rows: Sequence[Row]) -> list[Row]:
    """Those than which none has both a higher rate and a lower p99; by rising p99."""
    found: list[Row] = []
    for row in sorted(measured(rows), key=lambda row: (-place(row)[1], -place(row)[0])):
        if not found or place(row)[0] > place(found[-1])[0]:
            found.append(row)
    return found


def table(rows: Sequence[Row], notes: Mapping[Choice, str]) -> Table:
    """The fastest first; what stands on the front has a *."""
    made = Table(box=box.SIMPLE_HEAD)
    for column in ("", "candidate", "requests/s", "p50 ms", "p99 ms", ""):
        made.add_column(column, justify="right" if "s" in column[-2:] else "left")
    best = front(rows)
    for row in sorted(measured(rows), key=lambda row: place(row)[0]):
        load = row.load
        assert load is not None
        figures = f"{load.requests_per_second:.1f}", f"{load.p50_ms:.1f}", f"{load.p99_ms:.1f}"
        star = "*" * (row in best)
        made.add_row(star, str(row.choice), *figures, notes.get(row.choice, ""))
    for row in rows:
        if row.load is None:
            made.add_row("", str(row.choice), "", "", "", row.rejected, style="dim")
    return made


def measured(rows: Sequence[Row]) -> list[Row]:
    """All but those that are rejected."""
    return [row for row in rows if row.load is not None]


def place(row: Row) -> tuple[float, float]:
    """Rate, and p99 with its sign changed: of both more is better."""
    assert row.load is not None
    return row.load.requests_per_second, -row.load.p99_ms
