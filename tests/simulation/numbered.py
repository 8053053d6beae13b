"""Requests whose content says whose they are: the rows of number N hold N * 1000 + position. So an
answer can be compared with what was asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ranks import EXIT, HANG, RAISE, REFUSE, SEGFAULT, SLEEP
from .simulated import Asked
from .triton import Outputs

MOST_TOKENS = 8
"""Of a batch."""
SLOW_MILLISECONDS = 20
KINDS = {
    "good": 0,
    "slow": SLEEP,
    "refused": REFUSE,
    "malformed": 0,
    "raises": RAISE,
    "exits": EXIT,
    "crashes": SEGFAULT,
    "hangs": HANG,
}
POISON = ("raises", "exits", "crashes", "hangs")
EACH = 1000


@dataclass(eq=False, repr=False, kw_only=True)
class Numbered(Asked):
    """One request, and its content's number."""

    number: int

    def __repr__(self) -> str:
        return f"{self.number} ({self.kind}, to {self.replica})"

    @property
    def fits(self) -> bool:
        return bool(self.request.inputs["X"].shape[1] <= MOST_TOKENS)


def content(number: int, kind: str, width: int, lengths: Sequence[int], rank: int) -> Outputs:
    longest, count = max(lengths, default=0), len(lengths)
    x = np.arange(count * longest * width, dtype=np.int32).reshape(count, longest, width)
    faults = np.zeros((count, 3), np.int32)
    faults[:1] = KINDS[kind], rank, SLOW_MILLISECONDS if kind == "slow" else 3
    inputs = {"X": x + number * EACH, "FAULT": faults}
    if len(set(lengths)) > 1 or kind == "malformed":
        wrong = kind == "malformed"
        inputs["LENGTHS"] = np.array([[n + wrong * longest] for n in lengths], np.int32)
    return inputs


def expected(inputs: Mapping[str, Any]) -> Any:
    """What a model that returns its input makes of it alone."""
    y = inputs["X"].copy()
    if "LENGTHS" in inputs:
        y[np.arange(y.shape[1]) >= inputs["LENGTHS"]] = 0
    return y


def number_of(request: Any) -> int:
    """Of one in a queue."""
    return int(request.inputs["X"].flat[0]) // EACH
