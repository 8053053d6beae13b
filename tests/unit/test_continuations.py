"""How a decoder's continuations are judged."""

from __future__ import annotations

from typing import Any

import numpy as np

from build_scripts import continuations
from build_scripts.continuations import TIE, Continued

WANTED = [5, 6, 7, 8]


class Replica:
    """Continues as it is told: by a token's place, what comes instead."""

    def __init__(self, otherwise: dict[int, int], off: float = 0.0) -> None:
        self.otherwise, self.off = otherwise, off
        self.prompts: list[list[int]] = []

    def stream(self, prompt: list[int], answer: Any, max_tokens: int, **how: Any) -> None:
        assert how == {"ignore_eos": True, "logprobs": 0}
        self.prompts.append(prompt)
        start = len(prompt) - 2
        ids = [self.otherwise.get(n, WANTED[n % 4]) for n in range(start, start + max_tokens)]
        logprobs = [-0.5 + self.off] * max_tokens
        parts = [{"OUTPUT_IDS": ids[n], "LOGPROBS": logprobs[n]} for n in range(max_tokens)]
        arrays = [{name: np.array([[each]]) for name, each in part.items()} for part in parts]
        for each in arrays[:-1]:
            answer.part(each)
        answer.send(arrays[-1])


def compared(replica: Replica, gaps: list[float]) -> Continued:
    expected = {"OUTPUT_IDS": [WANTED], "LOGPROBS": [[-0.5] * 4], "GAPS": [gaps]}
    arrays = {name: np.array(value) for name, value in expected.items()}
    return continuations.compare(replica, {"INPUT_IDS": np.array([[1, 2]])}, arrays)  # type: ignore[arg-type]


def test_the_same() -> None:
    found = compared(Replica({}, off=0.25), [1.0] * 4)
    assert found == Continued(1.0, 0, 0.25, 0.25)


def test_another_token_is_an_error_unless_it_is_as_likely() -> None:
    replica = Replica({1: 9, 3: 9})
    found = compared(replica, [1.0, TIE / 2, 1.0, 1.0])
    assert (found.agreement, found.ties) == (0.75, 1)
    assert replica.prompts == [[1, 2], [1, 2, 5, 6]]  # On from the reference's token.


def test_nothing_of_it_is_right() -> None:
    found = compared(Replica(dict.fromkeys(range(4), 9)), [1.0] * 4)
    assert (found.agreement, found.max_error) == (0.0, np.inf)
    whole = continuations.summary([found, Continued(1.0, 1, 0.1, 0.1)])
    assert (whole["top1_agreement_min"], whole["ties"], whole["samples"]) == (0.5, 1, 2)


def test_rates_are_measured() -> None:
    replica = Replica({})
    prompts = [{"INPUT_IDS": np.array([[1, 2, *more]])} for more in ((3, 4), (), (3,))]
    found = continuations.latency(replica, prompts)  # type: ignore[arg-type]
    assert found["p50_ms"] >= 0
    assert found["tokens_per_second"] > 0
    assert [len(each) for each in replica.prompts] == [3, 3, 2, 3, 4]
