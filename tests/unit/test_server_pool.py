"""Threads for loads, where there may be none."""

import threading
from concurrent.futures import wait

import pytest

from python_mp.machine import thread as module
from server.watch.pool import Pool


def test_so_many_at_once_and_the_rest_in_order() -> None:
    pool, lock, go_on = Pool(3, "load"), threading.Lock(), threading.Semaphore(0)
    begun: list[int] = []

    def work(number: int) -> None:
        with lock:
            begun.append(number)
        assert go_on.acquire(timeout=10)

    futures = [pool.submit(lambda number=number: work(number)) for number in range(9)]
    for done in range(10):
        assert len(begun) <= done + 3
        go_on.release()
    assert not wait(futures, 10).not_done
    assert set(begun) == set(range(9))
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: print(1 // 0)).result(10)
    assert pool.submit(lambda: None).result(10) is None, "the thread goes on"
    pool.close()


@pytest.mark.parametrize("has_another", [False, True])
def test_without_a_new_thread(monkeypatch: pytest.MonkeyPatch, has_another: bool) -> None:
    pool, error = Pool(2, "load"), RuntimeError("can't start new thread")
    if has_another:
        pool.submit(lambda: None).result(10)

    def fails(_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        future = pool.submit(lambda: None)
    assert future.exception(10) is (None if has_another else error)
    assert pool.submit(lambda: None).result(10) is None, "later there are threads again"
    pool.close()


def test_a_thread_that_finds_no_memory_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython's `start` waits until the thread says that it has begun; this one never does."""
    monkeypatch.setattr(module, "START_SECONDS", 0.1)
    monkeypatch.setattr(threading, "_start_new_thread", lambda *_: 1)
    future = Pool(2, "load").submit(lambda: None)
    assert isinstance(future.exception(10), RuntimeError)
