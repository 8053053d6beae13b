"""How many tokens of prompts a step may have beside the next tokens of those that stream.

Learnt from the steps themselves: what one without prompts takes, and what each token of a prompt
adds. Beside one prompt who streams waits some three times as long as in a calm step, and the prompt
takes 1.5 times as long as alone, or more, since small pieces cost more. Of many prompts a step
takes more: a crowd has its first tokens sooner, and the device more rows at a time.
"""

from __future__ import annotations

from collections import defaultdict, deque
from functools import partial
from statistics import median

_MORE = 2.0
"""Times the calm step that prompts may add."""
_FIRST = 4.0
"""Streams that wait for their next token count as one that waits for its first."""
_WEIGHT = 0.2
"""Of the latest step, in what a token of a prompt adds."""
_CALM = 15
"""Calm steps whose median counts: one that the machine held up does not, though it was the last
before a long prompt."""
_LEAST = 16
"""Tokens; fewer cost as much, and a prompt must get on."""


class Pace:
    def __init__(self) -> None:
        self._calm: defaultdict[int, deque[float]] = defaultdict(partial(deque, maxlen=_CALM))
        """Seconds of the latest steps without prompts, by the binary digits of how many stream."""
        self._a_token = 0.0

    def learn(self, streaming: int, prompts: int, seconds: float) -> None:
        """A step with so many next tokens and tokens of prompts took so long."""
        if prompts:
            calm = self._calm_step(streaming) if streaming else 0.0
            latest = max(0.0, seconds - calm) / prompts
            before = self._a_token or latest
            self._a_token = before + _WEIGHT * (latest - before)
        elif streaming:
            self._calm[streaming.bit_length()].append(seconds)

    def most(self, budget: int, streaming: int, begin: int) -> int:
        """Tokens of prompts for a step that has `streaming` next tokens, where so many streams are
        still to have their first one."""
        calm = self._calm_step(streaming)
        if not calm or not self._a_token:
            return budget
        more = _MORE * max(1.0, _FIRST * begin / streaming)
        return min(budget, max(_LEAST, int(more * calm / self._a_token)))

    def _calm_step(self, streaming: int) -> float:
        """Of as many, or else of fewer; 0 where nothing is known."""
        if not self._calm:
            return 0.0
        fewer = [size for size in self._calm if size <= streaming.bit_length()]
        return median(self._calm[max(fewer) if fewer else min(self._calm)])
