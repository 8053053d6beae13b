"""The search: one axis after the other, each time from the best that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from build_scripts.plan.candidates import Change, Choice, changed
from build_scripts.plan.race import HOPELESS, Race, Result


@dataclass
class Descent:
    """
    Attributes:
        is_late: whether the time is up: what is on record counts still, and a candidate that is
            being measured is measured to the end.
        tell: is called before each candidate with how many are known to come in this pass.
        results: of all races, in their order.
        is_whole: whether a pass over all axes has brought nothing more.
    """

    race: Race
    axes: Mapping[str, Sequence[Change]]
    is_late: Callable[[], bool]
    tell: Callable[[Choice, int], None] = lambda _choice, _left: None
    results: list[Result] = field(default_factory=list)
    is_whole: bool = False
    _has_ended: bool = False
    _hopeless: list[Change] = field(default_factory=list)

    def best(self, start: Choice) -> Choice:
        """The candidate that no change of one axis makes better, or, when the time is up, the best
        that was found."""
        champion, before = start, None
        while champion != before:
            before = champion
            for axis in self.axes:
                champion = self._along(axis, champion)
                if self._has_ended:
                    return champion
        self.is_whole = True
        return champion

    def _along(self, axis: str, champion: Choice) -> Choice:
        origin = champion
        for left, change, challenger in self._new(axis, origin):
            if self.is_late() and not self.race.is_known(champion, challenger):
                self._has_ended = True
                break
            self.tell(challenger, left)
            result = self.race.between(champion, challenger)
            self.results.append(result)
            if result.gain < HOPELESS:
                self._hopeless.append(change)
            champion = challenger if result.wins else champion
        return champion

    def _new(self, axis: str, origin: Choice) -> Iterator[tuple[int, Change, Choice]]:
        """What has not been tried yet, and how many follow. A change that was hopeless once, or
        cannot be, is not tried again with others."""
        tried = {origin, *(each.challenger for each in self.results)}
        changes = [each for each in self.axes[axis] if each not in self._hopeless]
        found = {changed(origin, each): each for each in changes}
        new = [(choice, change) for choice, change in found.items() if choice not in tried]
        for at, (choice, change) in enumerate(new):
            yield len(new) - at - 1, change, choice
