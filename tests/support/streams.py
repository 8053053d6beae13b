"""Streams without Triton: an answer that keeps its parts, and what engine echo_decoder says."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any

import numpy as np

from python_mp.model.errors import PythonMpError
from python_mp.rank.engines.echo_decoder import FAULTS_FROM, next_id

EOS = 7


class Parts:
    """What a stream's client got, in parts; `done` has all of its ids, or its error."""

    keeps = False

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []
        self.done: Future[list[int]] = Future()
        self.cancelled = False
        self._lock = Lock()

    def part(self, outputs: Mapping[str, Any]) -> None:
        assert not self.done.done(), "a part behind the last one"
        with self._lock:
            self.parts.append(dict(outputs))

    def send(self, outputs: Mapping[str, Any]) -> None:
        self.part(outputs)
        self.done.set_result(self.ids)

    def fail(self, error: PythonMpError) -> None:
        self.done.set_exception(error)

    def is_cancelled(self) -> bool:
        return self.cancelled

    @property
    def ids(self) -> list[int]:
        with self._lock:
            return [token for part in self.parts for token in part["OUTPUT_IDS"][0].tolist()]

    def joined(self, name: str) -> Any:
        """An output of all parts, [n, ...]."""
        return np.concatenate([part[name][0] for part in self.parts])

    @property
    def reason(self) -> str:
        return str(self.parts[-1]["FINISH_REASON"][0, 0].decode())


def expected(prompt: Sequence[int], most: int, *, seed: int = 0, eos: int = EOS) -> list[int]:
    """The ids of an answer, one after the other, each of all before it."""
    ids = list(prompt)
    for _ in range(most):
        ids.append(next_id(np.array(ids, np.int32), FAULTS_FROM, seed))
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]
