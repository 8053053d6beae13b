"""What hangs ends the run of pytest and is named, wherever in a test it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.installation import PROJECT

HANGS = """
import ctypes, time
import pytest

@pytest.fixture(scope="session")
def session():
    {session}

@pytest.fixture(scope="module")
def module(session):
    {module}
    yield
    {teardown}

@pytest.mark.timeout(1)
def test_it(module):
    {test}
"""
PLACES = ("session", "module", "test", "teardown")
PYTHON, NATIVE = "time.sleep(60)", "ctypes.CDLL(None).pause()"
DEAF = "ctypes.PyDLL(None).pause()"  # and lets no other thread have a turn


def run(folder: Path, *options: str, **code: str) -> str:
    """What pytest says, with the project's settings, of a file that does this in these places."""
    file = folder / "test_hangs.py"
    file.write_text(HANGS.format(**{place: code.get(place, "pass") for place in PLACES}))
    command = [sys.executable, "-m", "pytest", "-c", PROJECT / "pyproject.toml", *options, file]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("place", "hang"), [("session", PYTHON), ("test", NATIVE)])
def test_a_hang_is_named(tmp_path: Path, place: str, hang: str) -> None:
    said = run(tmp_path, **{place: hang})
    assert "Timeout" in said
    assert hang in said


def test_a_hang_that_stops_all_threads_is_named(tmp_path: Path) -> None:
    said = run(tmp_path, "-o", "faulthandler_timeout=3", test=DEAF)
    assert "test_hangs.py" in said
    assert "in test_it" in said


def test_every_test_has_a_limit(request: pytest.FixtureRequest) -> None:
    """Of the run that this is: none is as long as what ends everything, or has none at all."""
    last = float(request.config.getini("faulthandler_timeout"))
    assert 0 < float(request.config.getini("timeout")) < last
    assert request.config.getini("faulthandler_exit_on_timeout")
    for item in request.session.items:
        marker = item.get_closest_marker("timeout")
        assert marker is None or 0 < marker.args[0] < last, item.nodeid
