"""Sequences that are empty change nothing for the others, and each input has its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from python_mp.model.errors import InvalidInput
from python_mp.sharding.bins import NOBODY, fill
from python_mp.sharding.packed import Packed
from python_mp.sharding.pooling import MODES, pool
from python_mp.sharding.rectangles import rectangles

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=7)


def batch(lengths: list[int], **more: list[int]) -> Packed:
    keys = {"cu_seqlens": lengths, **{f"cu_seqlens:{name}+Y": n for name, n in more.items()}}
    tensors = {key: np.cumsum([0, *n]).astype(np.int32) for key, n in keys.items()}
    return Packed({**tensors, "X": np.zeros((sum(lengths), 2), np.float32)}, CPU)


@settings(deadline=None)
@given(LENGTHS)
def test_the_others_are_computed_as_without_empty_ones(lengths: list[int]) -> None:
    full = [each for each in lengths if each]
    rows = torch.rand(sum(lengths), 2, 3)
    some, all_of = batch(full or [0]), batch(lengths)
    for causal in (False, True):
        found, expected = (each.attend(rows, rows, rows, causal=causal) for each in (all_of, some))
        torch.testing.assert_close(found, expected)
    assert torch.equal(all_of.positions, some.positions)
    states, modes = rows[:, 0], list(MODES)
    vectors = pool(states, all_of.cu_seqlens, modes)
    is_full = torch.tensor([each > 0 for each in lengths])
    assert not vectors[~is_full].any()
    if full:
        torch.testing.assert_close(vectors[is_full], pool(states, some.cu_seqlens, modes))
        torch.testing.assert_close(all_of.in_rectangles(lambda each: each.take(states)), states)
    else:
        with pytest.raises(InvalidInput, match="sequences are empty"):
            all_of.in_rectangles(lambda each: each.take(states))
    assert all(lengths[n] for each in rectangles(lengths, CPU) for n in each.sequences)
    gather, segments, scatter = fill(lengths)
    assert np.array_equal(gather.reshape(-1)[scatter], np.arange(sum(lengths)))
    assert (segments != NOBODY).sum() == sum(lengths)


def test_each_input_has_its_own() -> None:
    found = batch([2, 0, 3], AUDIO=[1, 4, 0])
    assert (found.of("X").lengths, found.lengths) == ([2, 0, 3], [2, 0, 3])
    assert found.of("AUDIO").lengths == found.of("Y").lengths == [1, 4, 0]
    assert found.of("AUDIO").positions.tolist() == [0, 0, 1, 2, 3]
    for name, rows, guilty in (("X", 5, {1: [0], 2: [2]}), ("AUDIO", 5, {0: [0], 4: [1]})):
        for row, sequences in guilty.items():
            bad: Tensor = torch.zeros(rows, 2, dtype=torch.bool)
            bad[row] = True
            with pytest.raises(InvalidInput, match="no") as raised:
                found.of(name).refuse(bad, "no")
            assert list(raised.value.sequences) == sequences
