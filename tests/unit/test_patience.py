"""When a group is started again."""

from types import SimpleNamespace

import pytest

from python_mp.front.inbox import GroupEnded
from python_mp.front.supervise import patience as module
from python_mp.front.supervise.patience import Patience

CANNOT = GroupEnded("rank 0 raised", raised="ValueError: no such layer")
FULL = GroupEnded("rank 0 raised", raised="OSError: [Errno 28] No space left on device")
NO_DESCRIPTOR = GroupEnded("internal error", own=True, killed=True)
BUG = GroupEnded("internal error", own=True)
KILLED = GroupEnded("rank 0 was killed by SIGKILL", killed=True)
EXITED = GroupEnded("rank 0 exited with 1")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def served() -> Patience:
    """Of a group that has served."""
    patience = Patience(120)
    patience.begin()
    patience.serves()
    return patience


def pauses(
    patience: Patience, clock: SimpleNamespace, ended: GroupEnded, took: float
) -> list[float]:
    """After each of ten starts that end so."""
    waited = []
    for _ in range(10):
        patience.begin()
        clock.now += took
        patience.failed(ended)
        waited.append(patience.seconds(ended))
    return waited


def test_what_cannot_start_is_tried_seldom(served: Patience, clock: SimpleNamespace) -> None:
    assert served.seconds(EXITED) == 0.0, "it had served: again at once"
    waited = pauses(served, clock, CANNOT, took=0.3)
    assert waited == sorted(waited)
    assert (waited[0], waited[-1]) == (0.5, 60.0)


@pytest.mark.parametrize("ended", [FULL, NO_DESCRIPTOR])
@pytest.mark.parametrize("took", [0.1, 1.0])
def test_what_may_pass_is_over_within_five_seconds(
    served: Patience, clock: SimpleNamespace, ended: GroupEnded, took: float
) -> None:
    assert max(pauses(served, clock, ended, took)) + took <= 5.0


def test_requests_are_kept_for_a_while_only(served: Patience) -> None:
    assert [served.failed(EXITED) for _ in range(3)] == [False, False, True]
    served.serves()
    assert [served.failed(NO_DESCRIPTOR) for _ in range(3)] == [False, False, True]
    served.serves()
    assert served.failed(CANNOT), "a rank says why"
    served.serves()
    assert not any(served.failed(KILLED) for _ in range(10)), "that comes from outside"


@pytest.mark.parametrize("ended", [CANNOT, BUG, EXITED, None])
def test_a_model_that_cannot_be_loaded_is_said_at_once(ended: GroupEnded | None) -> None:
    patience = Patience(120)
    assert patience.is_over(ended)
    patience.serves()
    assert not patience.is_over(ended)


@pytest.mark.parametrize("ended", [FULL, NO_DESCRIPTOR])
def test_a_first_start_outlasts_what_passes(clock: SimpleNamespace, ended: GroupEnded) -> None:
    patience = Patience(120)
    assert not patience.is_over(ended)
    clock.now += 60
    assert patience.is_over(ended)


def test_a_first_start_outlasts_a_host_that_is_lost(clock: SimpleNamespace) -> None:
    """As long as a start may take; where all ranks are on one host, nobody waits for another."""
    patience = Patience(120, apart=True)
    clock.now += 119
    assert not patience.is_over(KILLED)
    assert patience.is_over(CANNOT)
    clock.now += 2
    assert patience.is_over(KILLED)
    assert Patience(120).is_over(KILLED)
