"""`make bench`: collectives, parallel layers, engines, serving, overload, front, layouts,
idle, refusals. A table on the screen, JSON in results/.

python -m benchmarks [SECTION ...]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    collectives,
    engines,
    front,
    idle,
    layouts,
    overload,
    parallel,
    refusals,
    serving,
)

SECTIONS = {
    "collectives": collectives.run,
    "parallel": parallel.run,
    "engines": engines.run,
    "serving": serving.run,
    "overload": overload.run,
    "front": front.run,
    "layouts": layouts.run,
    "idle": idle.run,
    "refusals": refusals.run,
}


def main() -> None:
    """Runs the sections asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=", ".join(SECTIONS))
    parser.add_argument("--folder", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - SECTIONS.keys()
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    console = Console()
    results: dict[str, Any] = {"machine": _machine()}
    for name in arguments.sections or SECTIONS:
        results[name] = []
        with console.status(f"{name} ...") as status:
            for record in SECTIONS[name]():
                results[name].append(record)
                status.update(f"{name}: {len(results[name])} measured ...")
        console.print(_table(name, results[name]))
    arguments.folder.mkdir(exist_ok=True)
    path = arguments.folder / f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(results, indent=2))
    console.print(f"written to {path}")


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
