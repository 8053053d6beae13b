"""The gate of a build: no answer that is no number passes it, wherever it stands."""

from __future__ import annotations

import numpy as np
import pytest

from build_scripts import verify

BOUNDS = {"cosine_min": 0.9, "cosine_mean": 0.9, "max_error": 0.1, "mean_error": 0.1}


@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("sample", range(3))
@pytest.mark.parametrize("output", ["Y", "Z"])
def test_one_answer_that_is_no_number_fails_every_bound(
    sample: int, output: str, odd: float
) -> None:
    random = np.random.default_rng(0)
    names = ("Y", "Z")
    expected = [{n: random.random((1, 8), np.float32) for n in names} for _ in range(3)]
    answers = [{name: array.copy() for name, array in each.items()} for each in expected]
    good = verify.summary([verify.compare(a, e) for a, e in zip(answers, expected, strict=True)])
    assert verify.misses(good, BOUNDS) == []
    answers[sample][output][0, 3] = odd
    bad = verify.summary([verify.compare(a, e) for a, e in zip(answers, expected, strict=True)])
    assert len(verify.misses(bad, BOUNDS)) == len(BOUNDS)
