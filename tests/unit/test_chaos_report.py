"""What the operator of the chaos program sees, and its exit status."""

import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from clients.chaos import __main__ as program
from clients.chaos.commit import schedule
from clients.chaos.house import House, Status
from clients.chaos.journal import Journal, Outcome
from clients.chaos.leaks import PARTS, Usage
from clients.chaos.processes import HouseError
from clients.chaos.report import Report
from clients.chaos.run import Plan, Run
from clients.chaos.verdict import Committed, judge

FIGURES = {"processes": 22.0, "zombies": 0.0} | {f"threads of {part}": 4.0 for part in PARTS}
KILL = Committed("kill", "rank 0 of ranker", 1.0, 2.0, answers=0.25, whole=0.5)


def report(outcome: Outcome = Outcome.RIGHT) -> Report:
    journal = Journal()
    journal.ended(journal.sent("embed", "grpc"), outcome, "why")
    verdict = judge(journal.records, [KILL], ["kill"])
    after = Usage({**FIGURES, "processes": 25.0})
    return Report(60.0, 7, journal, [KILL], verdict, Usage(FIGURES), after)


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=80)
    report.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_fits_a_terminal() -> None:
    text = shown(report())
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith(" kill"))
    assert " ".join(row.split()) == "kill 1 0 0 0 0 0.25 / 0.25 0.50 / 0.50"
    assert "1 requests, 60 s of faults: 1 right" in text
    assert "all: processes 25 (+3), zombies 0 (+0)" in text
    assert "stubs: threads 4 (+0)" in text
    assert text.rstrip().endswith("no findings")


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.WRONG, Outcome.HUNG, Outcome.REFUSED])
def test_findings_are_shown_and_written(outcome: Outcome) -> None:
    sentence = f"1 x {outcome} at embed over grpc outside of any fault: why"
    assert f"finding: {sentence}" in shown(report(outcome))
    said = json.loads(json.dumps(report(outcome).json()))
    assert said["findings"] == [sentence]
    assert said["kinds"]["calm"][outcome] == said["requests"][outcome] == 1
    assert said["kinds"]["kill"]["answers_seconds"] == {"p50": 0.25, "max": 0.25}


def test_every_round_has_every_kind() -> None:
    kinds = ["kill", "freeze", "reload"]
    drawn = [*itertools.islice(schedule(kinds, random.Random(0)), 30)]
    rounds = [drawn[start : start + 3] for start in range(0, 30, 3)]
    assert all(sorted(each) == sorted(kinds) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1, "the order changes"


class Made:
    """A run whose report is known."""

    interrupted = False
    outcome = Outcome.RIGHT
    plan: Plan

    def __init__(self, plan: Plan, *_: Any, **__: Any) -> None:
        Made.plan = plan

    def __call__(self) -> Report:
        return report(self.outcome)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole server, which is this process's parent."""
    monkeypatch.setattr(program, "Run", Made)
    monkeypatch.setattr(program, "ancestors", lambda pid: iter([1]))
    monkeypatch.setattr(program.Usage, "of", lambda status: Usage(FIGURES))
    monkeypatch.setattr(program, "repository", lambda pid: Path("models"))
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    model = {"ready": True, "reason": "", "versions": [1], "stubs": [], "replicas": []}
    said = {"ready": True, "reason": "", "watcher": 1, "server": {"pid": 11}}
    status = Status.parse({**said, "models": {"ranker": model, "other": model}})
    monkeypatch.setattr(House, "status", lambda self: status)


@pytest.mark.usefixtures("house")
@pytest.mark.parametrize(
    ("outcome", "interrupted", "code"),
    [(Outcome.RIGHT, False, 0), (Outcome.WRONG, False, 1), (Outcome.RIGHT, True, 130)],
)
def test_the_exit_status(
    outcome: Outcome, interrupted: bool, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Made, "outcome", outcome)
    monkeypatch.setattr(Made, "interrupted", interrupted)
    written = tmp_path / "report.json"
    assert program.main(["--json", str(written)]) == code
    assert bool(json.loads(written.read_text())["findings"]) == (outcome is Outcome.WRONG)
    assert Made.plan.models == ["ranker"]
    assert "server" not in Made.plan.faults


@pytest.mark.usefixtures("house")
def test_what_cannot_begin_is_a_sentence_and_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--model", "absent"]) == 2
    assert capsys.readouterr().err == "chaos: no model absent; there are other, ranker\n"
    assert program.main(["--json", "/none/such/report.json"]) == 2
    assert capsys.readouterr().err == "chaos: there is no folder for /none/such/report.json\n"

    def closed(_: Status) -> Usage:
        raise PermissionError(13, "denied", "/proc/11/environ")

    monkeypatch.setattr(program.Usage, "of", closed)
    assert program.main([]) == 2
    assert "/proc/11/environ is closed to us; run this as the server's" in capsys.readouterr().err
    monkeypatch.setattr(program, "ancestors", lambda pid: iter([2]))
    assert program.main([]) == 2
    assert "run this on its host, as its user" in capsys.readouterr().err

    def refuse(_: House) -> Status:
        raise HouseError("no token")

    monkeypatch.setattr(House, "status", refuse)
    assert program.main([]) == 2
    assert capsys.readouterr().err == "chaos: no token\n"


@pytest.mark.parametrize("faults", ["kil", "kill,", ""])
def test_an_unknown_fault_is_named(faults: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main(["--faults", faults])
    assert (
        f"no fault {faults.rpartition(',')[2]!r}; there are kill, twice," in capsys.readouterr().err
    )


def test_run_is_what_the_program_runs() -> None:
    """So that the made one above stands for it."""
    assert program.Run is Run
