"""What the operator of the chaos program sees, and its exit status."""

import io
import itertools
import json
import random

import pytest
from rich.console import Console

from clients.chaos import __main__ as program
from clients.chaos.commit import schedule
from clients.chaos.journal import Journal, Outcome
from clients.chaos.leaks import PARTS, Usage
from clients.chaos.results import Report
from clients.chaos.verdict import Committed, judge

FIGURES = {"processes": 22.0, "zombies": 0.0} | {f"threads of {part}": 4.0 for part in PARTS}
KILL = Committed("kill", "rank 0 of ranker", 1.0, 2.0, answers=0.25, whole=0.5)


def report(outcome: Outcome) -> Report:
    journal = Journal()
    journal.ended(journal.sent("embed", "grpc"), outcome, "why")
    verdict = judge(journal.records, [KILL], ["kill"])
    after = Usage({**FIGURES, "processes": 25.0})
    return Report(60.0, 7, journal, [KILL], verdict, Usage(FIGURES), after)


def shown(report: Report) -> str:
    file = io.StringIO()
    report.show(Console(file=file, width=80))
    return file.getvalue()


def test_the_table_fits_a_terminal() -> None:
    text = shown(report(Outcome.RIGHT))
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith(" kill"))
    assert " ".join(row.split()) == "kill 1 0 0 0 0 0.25 / 0.25 0.50 / 0.50"
    assert "all: processes 25 (+3), zombies 0 (+0)" in text
    assert text.rstrip().endswith("no findings")


def test_findings_are_shown_and_written() -> None:
    sentence = "1 x failed at embed over grpc outside of any fault: why"
    assert f"finding: {sentence}" in shown(report(Outcome.FAILED))
    said = json.loads(json.dumps(report(Outcome.FAILED).json()))
    assert said["findings"] == [sentence]
    assert said["kinds"]["calm"]["failed"] == said["requests"]["failed"] == 1
    assert said["kinds"]["kill"]["answers_seconds"] == {"p50": 0.25, "max": 0.25}


def test_every_round_has_every_kind() -> None:
    kinds = ["kill", "freeze", "reload"]
    drawn = [*itertools.islice(schedule(kinds, random.Random(0)), 30)]
    rounds = [drawn[start : start + 3] for start in range(0, 30, 3)]
    assert all(sorted(each) == sorted(kinds) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1, "the order changes"


def test_what_cannot_begin_is_a_sentence_and_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No server, and faults that there are not."""
    monkeypatch.setenv("HEALTH_PORT", "1")
    assert program.main([]) == 2
    assert capsys.readouterr().err.startswith("chaos: ")
    for faults in ("kil", "kill,"):
        with pytest.raises(SystemExit, match="2"):
            program.main(["--faults", faults])
        assert f"no fault {faults.rpartition(',')[2]!r}; there are" in capsys.readouterr().err
