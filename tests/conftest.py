"""For every test: a hard time limit."""

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

TIMEOUT = 120.0


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that hangs: after 120 s, or what @pytest.mark.timeout(seconds) says."""
    marker = request.node.get_closest_marker("timeout")
    seconds = marker.args[0] if marker else TIMEOUT

    def expire(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
