"""For every test: servers that leave nothing behind."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.process.installation import PROJECT
from server.process.launch import TritonServer
from tests.support.campaigns import pytest_configure, pytest_report_header
from tests.support.forkserver import forkservers, one_forkserver
from tests.support.programs import composer, program
from tests.support.required import pytest_make_collect_report, pytest_runtest_makereport
from tests.support.serving import Serve, assert_nothing_left, serving
from tests.support.workers import pytest_xdist_make_scheduler

# Processes inherit what is ignored: after nohup, or in a background job, Ctrl-C would end nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

__all__ = [
    "composer",
    "forkservers",
    "one_forkserver",
    "program",
    "pytest_configure",
    "pytest_make_collect_report",
    "pytest_report_header",
    "pytest_runtest_makereport",
    "pytest_xdist_make_scheduler",
]


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
