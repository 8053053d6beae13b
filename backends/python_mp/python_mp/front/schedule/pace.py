"""How many tokens of prompts a step may have beside the next tokens of those that stream.

Learnt from the steps themselves: what one without prompts takes, and what each token of a prompt
adds. Who streams then waits at most some 2.7 times as long as in a calm step, and a prompt takes
some 1.6 times as long as alone.
"""

from __future__ import annotations

_MORE = 1.8
"""Times the calm step that prompts may add."""
_WEIGHT = 0.2
"""Of the latest step."""
_LEAST = 16
"""Tokens; fewer cost as much, and a prompt must get on."""


class Pace:
    def __init__(self) -> None:
        self._calm = 0.0
        self._a_token = 0.0

    def learn(self, streaming: int, prompts: int, seconds: float) -> None:
        """A step with so many next tokens and tokens of prompts took so long."""
        if streaming and not prompts:
            self._calm = _mean(self._calm, seconds)
        elif prompts:
            calm = self._calm if streaming else 0.0
            self._a_token = _mean(self._a_token, max(0.0, seconds - calm) / prompts)

    def most(self, budget: int) -> int:
        """Tokens of prompts for a step that has next tokens."""
        if not self._calm or not self._a_token:
            return budget
        return min(budget, max(_LEAST, int(_MORE * self._calm / self._a_token)))


def _mean(before: float, latest: float) -> float:
    return before + _WEIGHT * (latest - before) if before else latest
