"""Two candidates in turns, until it is clear which is better; measurements are kept in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from build_scripts import storage
from build_scripts.plan.candidates import Choice
from clients.closed_loop import Load

WINS, DEFEATS = 4, 2
"""Of pairs: so many of the first, before so many of the second, and a candidate takes over."""
HOPELESS = 0.8
"""What is so much worse in its first pair gets no second one."""
LEAST_GAIN = 1.02
"""Less is not worth a change of files."""
Pair = tuple[Load, Load]


class Rejected(Exception):
    """A candidate that cannot be built, is not accurate enough, or does not serve; the text says
    why."""


class Measures(Protocol):
    """Both verbs raise Rejected."""

    def keep(self, *candidates: Choice) -> None:
        """Have these served, and no others."""

    def load(self, choice: Choice) -> Load:
        """What clients get of one."""


class Records:
    """Lines of JSON, {"key": ..., "pair": [...]} or {"key": ..., "why": ...}; one that a killed run
    has cut is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, list[Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError):
                said = json.loads(line)
                self._found.setdefault(said.pop("key"), []).append(said)

    def of(self, key: str) -> list[Any]:
        return self._found.get(key, [])

    def add(self, key: str, value: dict[str, Any]) -> None:
        self._found.setdefault(key, []).append(value)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({"key": key, **value}) + "\n")


@dataclass(frozen=True)
class Result:
    """
    Attributes:
        pairs: the champion's load and the challenger's, in turns.
        gains: of the challenger, for each pair: above 1 it is better.
        why: it is rejected.
    """

    challenger: Choice
    pairs: Sequence[Pair] = ()
    gains: Sequence[float] = ()
    why: str = ""

    @property
    def gain(self) -> float:
        return median(self.gains) if self.gains else 0.0

    @property
    def wins(self) -> bool:
        return sum(gain > 1 for gain in self.gains) >= WINS and self.gain >= LEAST_GAIN

    @property
    def is_decided(self) -> bool:
        won = sum(gain > 1 for gain in self.gains)
        lost = len(self.gains) - won
        hopeless = self.gains and self.gains[0] < HOPELESS
        return bool(self.why or hopeless or won >= WINS or lost >= DEFEATS)


@dataclass
class Race:
    """
    Attributes:
        context: JSON values on which measurements depend: requests, machine, what is built.
        latency_ms: what p99 may be; candidates that keep it are compared by their rate.
    """

    measures: Measures
    records: Records
    context: Any
    latency_ms: float
    measured: int = field(default=0, init=False)

    def is_known(self, champion: Choice, challenger: Choice) -> bool:
        """Whether what is on record decides it."""
        return self._recorded(self._key(champion, challenger), challenger).is_decided

    def between(self, champion: Choice, challenger: Choice) -> Result:
        """Of the pairs that are on record, and those that are still needed."""
        key = self._key(champion, challenger)
        while not (result := self._recorded(key, challenger)).is_decided:
            self.records.add(key, self._measure(champion, challenger))
        return result

    def _key(self, champion: Choice, challenger: Choice) -> str:
        return storage.digest([self.context, asdict(champion), asdict(challenger)])

    def _recorded(self, key: str, challenger: Choice) -> Result:
        found = self.records.of(key)
        pairs = [_pair(each["pair"]) for each in found if "pair" in each]
        why = next((each["why"] for each in found if "why" in each), "")
        gains = [gain(*pair, self.latency_ms) for pair in pairs]
        return Result(challenger, pairs, gains, why)

    def _measure(self, champion: Choice, challenger: Choice) -> dict[str, Any]:
        self.measured += 1
        self.measures.keep(champion)
        try:
            self.measures.keep(champion, challenger)
            theirs = self.measures.load(challenger)
        except Rejected as rejected:
            return {"why": str(rejected)}
        return {"pair": [asdict(self.measures.load(champion)), asdict(theirs)]}


def gain(champion: Load, challenger: Load, latency_ms: float) -> float:
    """By rate, where both keep the bound; where none does, by p99."""
    keeps = champion.p99_ms <= latency_ms, challenger.p99_ms <= latency_ms
    if all(keeps):
        return challenger.requests_per_second / champion.requests_per_second
    if not any(keeps):
        return champion.p99_ms / challenger.p99_ms
    return 1e6 if keeps[1] else 1e-6


def usual(loads: Sequence[Load]) -> Load:
    """Medians of each figure."""

    def middle(name: str) -> float:
        return float(median(getattr(load, name) for load in loads))

    names = "requests_per_second", "p50_ms", "p99_ms"
    return Load(loads[0].generator, *map(middle, names))


def _pair(said: Sequence[Any]) -> Pair:
    first, second = (Load(**each) for each in said)
    return first, second


def seen(results: Sequence[Result], first: Choice) -> Iterator[tuple[Choice, list[Load]]]:
    """All loads of each candidate."""
    loads: dict[Choice, list[Load]] = {first: []}
    champion = first
    for each in results:
        loads[champion] += [pair[0] for pair in each.pairs]
        loads.setdefault(each.challenger, []).extend(pair[1] for pair in each.pairs)
        champion = each.challenger if each.wins else champion
    return iter(loads.items())
