"""A checkpoint's decoder behind the whole front: what transformers generates of each prompt alone,
however streams share steps, and whatever dies meanwhile.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import decoding
from tests.support.decoding import NEAR, Asked, served_config
from tests.support.processes import until
from tests.support.replicas import Served, counted, pids, served
from tests.support.streams import Parts

LIMIT = 120.0
MORE = (
    *(("llama", 1, 1), ("mistral", 1, 2), ("qwen2", 2, 2), ("qwen3", 3, 1), ("gemma2", 1, 2)),
    *(("gemma3", 2, 1), ("gpt2", 2, 2), ("gpt_neox", 1, 3), ("phi", 1, 1)),
)


def ask_all(replica: Served, every: Sequence[Asked], **parameters: Any) -> list[Parts]:
    answers = [Parts() for _ in every]
    for each, answer in zip(every, answers, strict=True):
        replica.stream(each.prompt, answer, max_tokens=len(each.wanted), **parameters)
    return answers


def ties(answer: Parts, each: Asked) -> int:
    """Whether another token than the reference's was as good; behind it nothing can be compared."""
    got = answer.done.result(LIMIT)
    assert len(got) == len(each.wanted)
    for place, (found, wanted) in enumerate(zip(got, each.wanted, strict=True)):
        if found != wanted:
            assert each.gaps[place] < NEAR, f"token {place} is {found}, not {wanted}"
            return 1
    return 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "tp", "pp"),
    [
        ("llama", 2, 1),
        *(pytest.param(*each, marks=pytest.mark.campaign) for each in MORE),
    ],
)
def test_as_transformers_generates(tmp_path: Path, name: str, tp: int, pp: int) -> None:
    """Too few blocks for all, and a rank killed in the middle; alone and in a crowd a seed draws
    the same."""
    every = decoding.asked(decoding.model(name), 10, 60, 30)
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    with served(served_config(tmp_path, name, kv_cache_blocks=20, **sizes), tmp_path) as replica:
        answers = ask_all(replica, every)
        until(lambda: sum(len(answer.ids) for answer in answers) > 60, LIMIT)
        os.kill(pids(replica)[-1], signal.SIGKILL)
        assert sum(map(ties, answers, every)) <= 2
        assert counted(replica, "generation") == [2]
        drawn = ask_all(replica, every, temperature=1.0, seed=5, repetition_penalty=1.1)
        alone = ask_all(replica, every[1:2], temperature=1.0, seed=5, repetition_penalty=1.1)
        assert drawn[1].done.result(LIMIT) == alone[0].done.result(LIMIT)
        assert drawn[1].ids != answers[1].ids
