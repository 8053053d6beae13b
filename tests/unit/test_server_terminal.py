"""Lines for somebody who may not read them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server import terminal
from server.terminal import Lines


def test_what_nobody_reads_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 0.2)
    out, into = os.pipe()
    say = Lines(into)
    began = time.monotonic()
    for number in range(3000):
        say(f"{number} " + "x" * 10_000)
    assert time.monotonic() - began < 30
    while len(os.read(out, 1 << 20)) == 1 << 16:
        pass
    say("it reads again")
    assert os.read(out, 1 << 20).endswith(b"it reads again\n")
    os.close(out)
    say("nobody is there")
    os.close(into)
    say("neither is this end")


def test_long_lines_come_whole(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        Lines(file.fileno())("ü" * 100_000)
    assert (tmp_path / "log").read_text() == "ü" * 100_000 + "\n"


def test_threads_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 0.01)
    out, into = os.pipe()
    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(Lines(into), ["x" * 1000] * 800)), "none has raised"
    os.close(out)
    os.close(into)


def test_a_full_disk_is_no_harm() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        Lines(full.fileno())("lost")
