"""Whatever call of the front or the watcher fails: it serves again once the cause is gone, or says
why it does not, and every request is answered or refused. The calls are those of a trace.

In the environment OSFAULTS_ONLY=PATTERN tries only such cases of `test_every_call`, all of them.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.osfaults import strace
from tests.osfaults.cases import Case, Make, lasting, single, telling
from tests.osfaults.front import Forkserver, Front
from tests.osfaults.subject import Subject
from tests.osfaults.watched import Watcher
from tests.support.campaigns import some

PHASES = [(each, phase) for each in (Front, Forkserver, Watcher) for phase in each.PHASES]
ONLY = os.environ.get("OSFAULTS_ONLY", "")
pytestmark = pytest.mark.usefixtures("_may_trace", "_leaves_no_file")


@pytest.fixture
def _leaves_no_file() -> Iterator[None]:
    """Where the tests are run, which is mostly the project."""
    before = {entry.name for entry in Path.cwd().iterdir() if entry.is_file()}
    yield
    assert {entry.name for entry in Path.cwd().iterdir() if entry.is_file()} <= before


@pytest.fixture(scope="module")
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


def check(subject: Subject, cases: Iterable[Case]) -> None:
    troubles = [subject.try_out(case) for case in cases]
    assert troubles or ONLY, "nothing was tried"
    assert not any(troubles), "\n".join(filter(None, troubles))


@pytest.mark.slow
@pytest.mark.parametrize("make", [Front, Forkserver, Watcher])
def test_some_telling_calls(make: type[Subject], tmp_path: Path) -> None:
    with closing(make(tmp_path)) as subject:
        phases, most = make.USUAL
        check(subject, telling(subject.cases(lasting, *phases), most))


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cases", [lasting, single])
@pytest.mark.parametrize(("make", "phase"), PHASES)
def test_every_call(make: type[Subject], phase: str, cases: Make, tmp_path: Path) -> None:
    with closing(make(tmp_path)) as subject:
        wanted = [each for each in subject.cases(cases, phase) if re.search(ONLY, str(each))]
        check(subject, wanted if ONLY else some(wanted, 12))
