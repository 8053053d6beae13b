"""What the operator reads, and what --json writes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clients.chaos.journal import Journal, Outcome
from clients.chaos.leaks import PARTS, Usage
from clients.chaos.next_token import Waits
from clients.chaos.verdict import CALM, Committed, Row, Verdict, spread

SHOWN = (Outcome.FAILED, Outcome.REFUSED, Outcome.WRONG, Outcome.HUNG)

CAPTION = (
    "seconds: slowest right answer; p50 / max until a request sent after the fault is answered,"
    " and until all serves again"
)


@dataclass(frozen=True)
class Report:
    """All that came of a run; `seconds` is the time under load and faults."""

    seconds: float
    seed: int
    journal: Journal
    committed: Sequence[Committed]
    verdict: Verdict
    before: Usage
    after: Usage
    waits: Waits | None = None

    def show(self, console: Console) -> None:
        console.print(table(self.verdict.rows))
        said = [f"{count} {outcome}" for outcome, count in self.journal.counts.most_common()]
        console.print(
            f"{self.journal.total} requests, {self.seconds:.0f} s of faults: {', '.join(said)}"
        )
        if self.waits:
            console.print(self.waits.told(), soft_wrap=True)
        for line in growth(self.before, self.after):
            console.print(line, soft_wrap=True)
        for finding in self.verdict.findings:
            console.print(f"[red]finding:[/red] {escape(finding)}", soft_wrap=True)
        if not self.verdict.findings:
            console.print("[green]no findings[/green]")

    def json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
            "requests": {outcome: self.journal.counts[outcome] for outcome in Outcome},
            "kinds": {row.kind: as_json(row) for row in self.verdict.rows},
            "faults": [asdict(fault) for fault in self.committed],
            "streams": self.waits and self.waits.json(),
            "before": dict(self.before.figures),
            "after": dict(self.after.figures),
            "findings": self.verdict.findings,
        }


def table(rows: Sequence[Row]) -> Table:
    """A row a kind of fault."""
    shown = Table(box=SIMPLE_HEAD, padding=0, caption=CAPTION, caption_justify="left")
    shown.add_column("fault", no_wrap=True)
    for name in ("count", *SHOWN, "slowest", "answers", "whole"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        counts = [str(row.outcomes[outcome]) for outcome in SHOWN]
        times = [
            f"{row.slowest:.1f}" if row.slowest else "",
            *map(_times, (row.answers, row.whole)),
        ]
        shown.add_row(row.kind, "" if row.kind == CALM else str(row.count), *counts, *times)
    return shown


def growth(before: Usage, after: Usage) -> Iterator[str]:
    """What is held, and how much more that is: a line for the whole, and one for each part that
    there is."""
    grown = after.growth(before)
    for part in ("", *PARTS):
        figures = {
            name: value
            for name, value in after.figures.items()
            if name.endswith(f" of {part}") or not (part or name.endswith(PARTS))
        }
        said = [
            f"{name.removesuffix(f' of {part}')} {value:.4g} ({grown[name]:+.3g})"
            for name, value in figures.items()
        ]
        if any(figures.values()):
            yield f"{part or 'all'}: {', '.join(said)}"


def as_json(row: Row) -> dict[str, Any]:
    return {
        "count": row.count,
        **{outcome: row.outcomes[outcome] for outcome in (*SHOWN, Outcome.CANCELLED)},
        "slowest_seconds": row.slowest,
        "answers_seconds": spread(row.answers),
        "whole_seconds": spread(row.whole),
    }


def _times(values: Sequence[float]) -> str:
    found = spread(values)
    return (
        " / ".join(f"{each:.{2 if each < 10 else 1}f}" for each in found.values()) if found else ""
    )
