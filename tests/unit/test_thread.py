"""A thread that cannot run does not keep the one that starts it."""

import threading

import pytest

from python_mp.machine import thread


def test_a_thread_runs() -> None:
    ran = threading.Event()
    running = thread.Thread(target=ran.set)
    running.start()
    running.join()
    assert ran.is_set()


def test_one_that_finds_no_memory_for_its_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "_start_new_thread", lambda *_: 0)  # And nothing happens.
    monkeypatch.setattr(thread, "START_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match="no memory"):
        thread.Thread(target=print).start()
