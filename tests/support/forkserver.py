"""One forkserver for the ranks of many tests: to import torch is most of a start."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from python_mp.front.supervise.forkserver_client import ForkserverClient

IMPORT_SECONDS = 60.0


class Shared(ForkserverClient):
    """Serves several replicas, one order after the other, and outlives them. What a rank leaves
    behind becomes its child, however detached."""

    def __init__(self, engine: str) -> None:
        super().__init__(engine, Path("nowhere"), 0)
        self._one = Lock()

    def stop(self) -> None:
        if not self.is_sound:
            super().stop()

    def kill(self) -> None:
        self._process.kill()
        super().stop()

    def end(self) -> None:
        super().stop()

    def _ask(self, *order: Any) -> dict[str, Any] | None:
        with self._one:
            return super()._ask(*order)


class Pool:
    """The forkserver to use; another one once that has died."""

    def __init__(self, engine: str = "torch") -> None:
        self._engine = engine
        self._made: list[Shared] = []
        self._maker = ThreadPoolExecutor(1)  # The kernel ends it with the thread that made it.

    def get(self, *_: object) -> Shared:
        return self._maker.submit(self._get).result()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it the ranks of all replicas, of any engine, are forked from one process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("python_mp.front.supervise.supervisor.ForkserverClient", self.get)
            yield

    def close(self) -> None:
        for each in self._made:
            each.end()
        self._maker.shutdown()

    def _get(self) -> Shared:
        if not self._made or not self._made[-1].is_sound:
            self._made.append(Shared(self._engine))
            assert self._made[-1].wait_ready(IMPORT_SECONDS)
        return self._made[-1]


@pytest.fixture(scope="session")
def forkservers() -> Iterator[Pool]:
    """One for the whole run."""
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def one_forkserver(forkservers: Pool) -> Iterator[Pool]:
    """For a module's tests: they measure no start and end no forkserver."""
    with forkservers.used():
        yield forkservers
