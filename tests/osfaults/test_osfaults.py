"""Whatever call of the front or the watcher fails: it serves again once the cause is gone, or says
why it does not, and every request is answered or refused. The calls are those of a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.osfaults import strace
from tests.osfaults.cases import Case, lasting, single
from tests.osfaults.front import Front, Nursery
from tests.osfaults.kinds import one_of_each
from tests.osfaults.subject import RETURN_SECONDS, SLACK_SECONDS, Make, Subject
from tests.osfaults.watched import Watched

PHASES = [(each, phase) for each in (Front, Nursery, Watched) for phase in each.PHASES]


@pytest.fixture(autouse=True)
def _leaves_no_file() -> Iterator[None]:
    """Where the tests are run, which is mostly the project."""
    before = {entry.name for entry in Path.cwd().iterdir() if entry.is_file()}
    yield
    assert {entry.name for entry in Path.cwd().iterdir() if entry.is_file()} <= before


@pytest.fixture
def _may_trace(program: Callable[[str], str]) -> None:
    """Needs strace, and a system that lets it trace; see `program`."""
    path = program("strace")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as sleeper:
        why_not = strace.check(path, sleeper.pid)
        sleeper.kill()
    if why_not and os.environ.get("REQUIRE_PROGRAMS"):
        pytest.fail(why_not)
    if why_not:
        pytest.skip(why_not)


def failures(subject: Subject, cases: Iterable[Case]) -> str:
    tried = [subject.try_out(case) for case in cases]
    assert tried, "nothing was tried"
    return "\n".join(
        f"{done.case}: {done.trouble or f'took {done.seconds:.1f} s'}"
        for done in tried
        if done.trouble or done.seconds > RETURN_SECONDS + SLACK_SECONDS
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [Front, Nursery, Watched])
@pytest.mark.usefixtures("_may_trace")
def test_a_call_of_each_kind(make: type[Subject], tmp_path: Path) -> None:
    subject = make(tmp_path)
    try:
        cases = [case for phase in make.PHASES for case in subject.cases(lasting, phase)]
        assert not failures(subject, one_of_each(cases, make.PHASES))
    finally:
        subject.close()


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cases", [lasting, single])
@pytest.mark.parametrize(("make", "phase"), PHASES)
@pytest.mark.usefixtures("_may_trace")
def test_every_call(make: type[Subject], phase: str, cases: Make, tmp_path: Path) -> None:
    subject = make(tmp_path)
    try:
        assert not failures(subject, subject.cases(cases, phase))
    finally:
        subject.close()
