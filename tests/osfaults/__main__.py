"""Tries faults of the operating system, and says what became of each.

python -m tests.osfaults front|forkserver|watcher [PATTERN] [--single] [--keep RESULTS]
python -m tests.osfaults table RESULTS... > docs/faults.md
"""

import argparse
import re
import tempfile
from contextlib import closing
from pathlib import Path

from tests.osfaults import table
from tests.osfaults.cases import lasting, single
from tests.osfaults.front import Forkserver, Front
from tests.osfaults.subject import Subject
from tests.osfaults.watched import Watched

SUBJECTS: dict[str, type[Subject]] = {"front": Front, "forkserver": Forkserver, "watcher": Watched}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("subject", choices=[*SUBJECTS, "table"])
    parser.add_argument("rest", nargs="*", default=["."], metavar="PATTERN | RESULTS")
    parser.add_argument("--single", action="store_true", help="one call fails, not all for a while")
    parser.add_argument("--keep", type=Path, metavar="RESULTS")
    ours = parser.parse_args()
    if ours.subject == "table":
        print("\n".join(table.render(table.read(map(Path, ours.rest)))))
        return
    make = SUBJECTS[ours.subject]
    with tempfile.TemporaryDirectory() as folder, closing(make(Path(folder))) as it:
        phase, pattern = ours.rest[0].partition(":")[0], ours.rest[0]
        phases = [each for each in it.PHASES if re.search(phase, each)]
        made = it.cases(single if ours.single else lasting, *phases)
        cases = [case for case in made if re.search(pattern, str(case))]
        for number, case in enumerate(cases, 1):
            done = it.try_out(case)
            print(f"{number}/{len(cases)} {case}: {done.how} {done.seconds:.1f} s", flush=True)
            if done.trouble:
                print("  FAILED", done.trouble.replace("\n", "\n    "), flush=True)
            if ours.keep:
                table.keep(ours.keep, ours.subject, done)


if __name__ == "__main__":
    main()
