"""For every test: a hard time limit, and servers that leave nothing behind."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from server.installation import PROJECT
from server.launch import TritonServer
from tests.serving import Serve, assert_nothing_left, serving

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


@pytest.fixture(scope="session")
def serve() -> Serve:
    """`with serve(repository, **settings) as server:` a server that must leave nothing behind."""
    return serving


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[TritonServer]:
    """The project's own models, one server for all tests that do it no harm."""
    with serve(PROJECT / "model_repository") as ready:
        yield ready


@pytest.fixture(scope="session")
def check_left() -> Callable[[tuple[str, Path]], None]:
    """`check_left((prefix, folder))` asserts that nothing is left of a run."""
    return lambda run: assert_nothing_left(*run)
