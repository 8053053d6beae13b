"""All that is measured on a GPU, in two scripts that end within four minutes each:

    python -m benchmarks.gpu device CHECKPOINT      a rank, and what the device gives alone
    python -m benchmarks.gpu served CHECKPOINT      `embed` behind Triton, and a peer beside it

CHECKPOINT is a folder of sentence-transformers. Uses the packages that are there. A part that
fails or takes too long costs the others nothing. What was measured stands in a table, and in FILE
after each part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

SECONDS = 230.0
PACKAGES = "torch", "transformers", "sentence-transformers", "nvidia-pytriton", "numpy"


@dataclass(frozen=True)
class Part:
    """A module of this package, the seconds that it may take, and its arguments."""

    module: str
    seconds: float
    takes: tuple[str, ...] = ()
    on_cpu: bool = False

    def command(self, checkpoint: Path, device: str) -> list[str]:
        dtype = "bfloat16" if device == "cuda" else "float32"
        known = {"checkpoint": str(checkpoint), "dtype": dtype, "device": device}
        arguments = [known[each] for each in self.takes]
        return [sys.executable, "-m", f"benchmarks.gpu.{self.module}", *arguments]


SCRIPTS = {
    "device": (
        Part("rank", 75, ("checkpoint", "dtype", "device"), on_cpu=True),
        Part("encoder", 50, ("checkpoint",)),
        Part("large", 45),
        Part("decoder", 75, on_cpu=True),
    ),
    "served": (Part("served", SECONDS, ("checkpoint", "device"), on_cpu=True),),
}


@dataclass(frozen=True)
class Outcome:
    """`state` is "done", or says in a sentence what became of it."""

    part: str
    state: str
    seconds: float
    records: list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if a part was not done."""
    options = _parser().parse_args(arguments)
    parts = [part for part in SCRIPTS[options.script] if options.device == "cuda" or part.on_cpu]
    until = time.monotonic() + options.seconds
    outcomes: list[Outcome] = []
    for part in parts:
        limit = min(part.seconds, until - time.monotonic())
        outcomes.append(run(part.module, part.command(options.checkpoint, options.device), limit))
        print("\n".join(lines(outcomes[-1])), flush=True)
        found = {"machine": machine(), "parts": [asdict(outcome) for outcome in outcomes]}
        options.json.write_text(json.dumps(found, indent=2))
    return int(any(outcome.state != "done" for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("script", choices=SCRIPTS)
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    made.add_argument("--seconds", type=float, default=SECONDS, help="of all parts together")
    made.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE")
    return made


def run(name: str, command: Sequence[str], seconds: float) -> Outcome:
    """Lines of JSON on its standard output are records; the rest is its own."""
    if seconds <= 0:
        return Outcome(name, "not begun: no time was left", 0.0, [])
    began = time.monotonic()
    # Of a session of its own: what it started ends with it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
            last = (err.strip().splitlines() or ["no word"])[-1]
            state = f"failed: {last}" if process.returncode else "done"
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            state = f"not done after {seconds:.0f} s"
    return Outcome(name, state, time.monotonic() - began, [*_records(out)])


def _records(out: str) -> Iterator[dict[str, Any]]:
    for line in out.splitlines():
        if line.startswith("{"):
            with suppress(ValueError):  # it was killed while it wrote
                yield json.loads(line)


def lines(outcome: Outcome) -> Iterator[str]:
    """A table for each run of records that have the same keys."""
    yield f"{outcome.part}: {outcome.state} ({outcome.seconds:.0f} s)"
    for keys, group in groupby(outcome.records, key=lambda record: [*record]):
        rows = [keys, *([str(value) for value in record.values()] for record in group)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            yield "  " + "  ".join(cells)


def machine() -> dict[str, Any]:
    """Which packages are there, and what nvidia-smi calls the GPU."""
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "python": sys.version}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return found


if __name__ == "__main__":
    sys.exit(main())
