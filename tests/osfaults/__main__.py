"""Tries faults of the operating system, and says what became of each.

python -m tests.osfaults front|nursery|watcher [PATTERN] [--single] [--keep RESULTS]
python -m tests.osfaults table RESULTS... > docs/faults.md
"""

import argparse
import re
import tempfile
from pathlib import Path

from tests.osfaults import table
from tests.osfaults.cases import lasting, single
from tests.osfaults.front import Front, Nursery
from tests.osfaults.subject import Subject
from tests.osfaults.watched import Watched

SUBJECTS: dict[str, type[Subject]] = {"front": Front, "nursery": Nursery, "watcher": Watched}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("subject", choices=[*SUBJECTS, "table"])
    parser.add_argument("rest", nargs="*", default=[], metavar="PATTERN | RESULTS")
    parser.add_argument("--single", action="store_true", help="one call fails, not all for a while")
    parser.add_argument("--first", action="store_true", help="only the first error of each call")
    parser.add_argument("--list", action="store_true", help="only say what would be tried")
    parser.add_argument("--hold", type=float, default=0.0, metavar="S", help="so long it lasts")
    parser.add_argument("--keep", type=Path, metavar="RESULTS")
    ours = parser.parse_args()
    if ours.subject == "table":
        print("\n".join(table.render(table.read(map(Path, ours.rest)))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(ours, Path(folder))


def run(ours: argparse.Namespace, folder: Path) -> None:
    subject = SUBJECTS[ours.subject](folder)
    make = single if ours.single else lasting
    pattern = ours.rest[0] if ours.rest else "."
    phases = [phase for phase in subject.PHASES if re.search(pattern.partition(":")[0], phase)]
    try:
        cases = [case for phase in phases for case in subject.cases(make, phase)]
        cases = [case for case in cases if re.search(pattern, str(case))]
        if ours.first:
            cases = list(
                {(case.phase, case.call, case.when): case for case in cases[::-1]}.values()
            )
        for number, case in enumerate(cases, 1):
            if ours.list:
                print(case)
                continue
            done = subject.try_out(case, ours.hold)
            print(f"{number}/{len(cases)} {case}: {done.how} {done.seconds:.1f} s", flush=True)
            if done.trouble:
                print("  FAILED", done.trouble.replace("\n", "\n    "), flush=True)
            if ours.keep:
                table.keep(ours.keep, ours.subject, done)
    finally:
        subject.close()


if __name__ == "__main__":
    main()
