"""How long streams wait for their next token once a rank has died, and how long they may."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

RESTART_SECONDS, SLACK = 1.5, 1.2
"""A stream may wait for its group's restart, and for all streams to be computed once more."""
Heard = Callable[[int], None]


@dataclass
class Struck:
    """A rank that died under streams.

    Attributes:
        at: the moment, of time.monotonic.
        tokens: of prompts and answers, of all streams that had begun to answer.
        pauses: of each of these, the longest between two tokens since then, in seconds; 0 while
            there is none.
    """

    at: float
    tokens: int
    pauses: dict[int, float]


@dataclass
class Streams:
    """Those that run. All clients' threads tell it.

    Attributes:
        begun: tokens of the prompts of all streams that have begun to answer, and their first ones.
    """

    begun: int = 0
    struck: list[Struck] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _tokens: dict[int, int] = field(default_factory=dict)
    _last: dict[int, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def one(self) -> Iterator[Heard]:
        """While it is open; what it gives is told the tokens of the stream with each part."""
        number = next(self._numbers)
        try:
            yield partial(self._heard, number)
        finally:
            with self._lock:
                self._tokens.pop(number, None)
                self._last.pop(number, None)

    def strike(self) -> None:
        """To be called just before the rank dies."""
        with self._lock:
            pauses = dict.fromkeys(self._tokens, 0.0)
            self.struck.append(Struck(time.monotonic(), sum(self._tokens.values()), pauses))

    def _heard(self, number: int, tokens: int) -> None:
        now = time.monotonic()
        with self._lock:
            self.begun += 0 if number in self._tokens else tokens
            if self.struck and number in self.struck[-1].pauses:
                since = max(self._last[number], self.struck[-1].at)
                pauses = self.struck[-1].pauses
                pauses[number] = max(pauses[number], now - since)
            self._tokens[number], self._last[number] = tokens, now


def prefill_rate(streams: Streams, asks: Sequence[Callable[[], object]]) -> float:
    """Tokens of prompts a second: each of `asks` is a prompt that is answered by one token."""
    before, began = streams.begun, time.monotonic()
    with ThreadPoolExecutor(len(asks)) as pool:
        for each in [pool.submit(ask) for ask in asks]:
            each.result()
    return (streams.begun - before) / (time.monotonic() - began)


@dataclass(frozen=True)
class Waits:
    """What came of it; `rate` is the lower `prefill_rate` of before and after."""

    rate: float
    struck: Sequence[Struck]

    @property
    def met(self) -> list[tuple[Struck, list[float]]]:
        """The deaths that streams were heard after, with their pauses."""
        found = [(each, [it for it in each.pauses.values() if it]) for each in self.struck]
        return [(each, pauses) for each, pauses in found if pauses]

    def allowed(self, struck: Struck) -> float:
        """Seconds."""
        return RESTART_SECONDS + SLACK * struck.tokens / self.rate

    def findings(self) -> list[str]:
        return [
            f"a stream waited {max(pauses):.2f} s for its next token, which may take"
            f" {self._terms(struck)}"
            for struck, pauses in self.met
            if max(pauses) > self.allowed(struck)
        ]

    def told(self) -> str:
        """A line for the operator; the death whose slowest stream came closest to the bound."""
        if not self.met:
            return "no stream was under way when a rank died"
        every = [pause for _, pauses in self.met for pause in pauses]
        worst = max(self.met, key=lambda each: max(each[1]) / self.allowed(each[0]))
        return (
            f"deaths of ranks under streams: {len(self.met)}; next token of {len(every)} streams"
            f" after {median(every):.2f} s (median), {max(every):.2f} s (longest);"
            f" closest to what is allowed: {max(worst[1]):.2f} s of {self._terms(worst[0])}"
        )

    def json(self) -> dict[str, Any]:
        deaths = [
            {"tokens": each.tokens, "allowed": self.allowed(each), "pauses": pauses}
            for each, pauses in self.met
        ]
        return {"prefill_rate": self.rate, "deaths": deaths}

    def _terms(self, struck: Struck) -> str:
        return (
            f"{self.allowed(struck):.2f} s = {RESTART_SECONDS} s + {SLACK} x"
            f" {struck.tokens} tokens in hand / {self.rate:.0f} prefilled a second"
        )
