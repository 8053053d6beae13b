"""`make bench`: collectives, parallel layers, engines, one process, serving, processor time,
overload, front, layouts, idle, refusals, generation. A table on the screen, JSON in results/.

python -m benchmarks [SECTION ...]
python -m benchmarks peers [--only NAME ...] [--turns N] [--seconds S]      what others serve, too
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    collectives,
    engines,
    front,
    generation,
    idle,
    in_process,
    layouts,
    overload,
    parallel,
    processor,
    refusals,
    serving,
    two_hosts,
)
from benchmarks.peers import chart, side_by_side

Section = Callable[[], Iterable[dict[str, Any]]]
SECTIONS: dict[str, Section] = {
    "collectives": collectives.run,
    "parallel": parallel.run,
    "hosts": two_hosts.run,
    "engines": engines.run,
    "in_process": in_process.run,
    "serving": serving.run,
    "processor": processor.run,
    "overload": overload.run,
    "front": front.run,
    "layouts": layouts.run,
    "idle": idle.run,
    "refusals": refusals.run,
    "generation": generation.run,
}
PARTS: dict[str, Section] = {f"generation.{name}": run for name, run in generation.ROWS.items()}


def main() -> None:
    """Runs the sections asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=", ".join((*SECTIONS, *PARTS))
    )
    parser.add_argument("--folder", type=Path, default=Path("results"))
    peers = parser.add_argument_group("peers, which runs where it is named only")
    peers.add_argument("--only", action="extend", nargs="+", default=[], metavar="NAME")
    peers.add_argument("--turns", type=int, default=3)
    peers.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    beside = partial(side_by_side.run, arguments.only, arguments.turns, arguments.seconds)
    sections: dict[str, Section] = {**SECTIONS, **PARTS, "peers": beside}
    unknown = set(arguments.sections) - sections.keys()
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended, too
    _run({name: sections[name] for name in arguments.sections or SECTIONS}, arguments.folder)


def _run(sections: dict[str, Section], folder: Path) -> None:
    console = Console()
    results: dict[str, Any] = {"machine": _machine()}
    for name, run in sections.items():
        results[name] = []
        with console.status(f"{name} ...") as status:
            for record in run():
                results[name].append(record)
                status.update(f"{name}: {len(results[name])} measured ...")
        console.print(_table(name, results[name]))
    folder.mkdir(exist_ok=True)
    path = folder / f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(results, indent=2))
    console.print(f"written to {path}")
    if records := results.get("peers"):
        drawn = path.with_suffix(".svg")
        drawn.write_text(chart.svg(records))
        console.print(f"drawn in {drawn}")


def _table(title: str, records: list[dict[str, Any]]) -> Table:
    table = Table(*records[0], title=title)
    for record in records:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in record.values()))
    return table


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    main()
