"""docs/faults.md, from what was tried: python -m tests.osfaults.table RESULTS > docs/faults.md"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.osfaults.cases import NOT_INJECTED, ONCE_ONLY
from tests.osfaults.subject import Outcome

Row = dict[str, Any]
_HEAD = Path(__file__).with_name("head.md").read_text()
_TEXT = 90


def keep(file: Path, subject: str, outcome: Outcome) -> None:
    row = asdict(outcome.case) | {"subject": subject, "how": outcome.how}
    row |= {"seconds": round(outcome.seconds, 1), "trouble": outcome.trouble}
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")


def read(files: Iterable[Path]) -> list[Row]:
    """Of cases that were tried again the last one."""
    rows = (json.loads(line) for file in files for line in file.read_text().splitlines())
    keys = ("subject", "phase", "call", "error", "when")
    return list({tuple(row[key] for key in keys): row for row in rows}.values())


def render(rows: list[Row]) -> Iterator[str]:
    yield _HEAD
    lasting = [row for row in rows if not row["when"]]
    single = [row for row in rows if row["when"]]
    yield f"## Every call of a kind fails for a while: {len(lasting)} cases\n"
    yield from _table(lasting)
    yield f"\n## A single call fails: {len(single)} cases\n"
    yield from _table(single)
    yield "\n## Not tried\n\nstrace would let happen what no kernel does:\n"
    yield from (f"- `{call}`: {why}." for call, why in NOT_INJECTED.items())
    yield from (f"- `{call}` that fails for a while: {why}." for call, why in ONCE_ONLY.items())


def _table(rows: list[Row]) -> Iterator[str]:
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["subject"], row["phase"], row["call"], _outcome(row)].append(row)
    yield "| of | while | call | errors | outcome | served again after |"
    yield "|---|---|---|---|---|---|"
    for (subject, phase, call, outcome), same in groups.items():
        errors = " ".join(dict.fromkeys(row["error"] for row in same))
        slowest = max(row["seconds"] for row in same)
        count = f" ({len(same)} cases)" if same[0]["when"] else ""
        yield f"| {subject} | {phase} | {call}{count} | {errors} | {outcome} | {slowest} s |"


def _outcome(row: Row) -> str:
    if row["trouble"]:
        return "FAILED: " + row["trouble"].splitlines()[0].replace("|", "/")[:_TEXT]
    said = str(row["how"]).replace("|", "/").partition(";")[0]
    return said if len(said) <= _TEXT else said[: _TEXT - 3] + "..."


if __name__ == "__main__":
    print("\n".join(render(read(map(Path, sys.argv[1:])))))
