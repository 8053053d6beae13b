"""Sequences in a rectangle: everything is in it once, and hardly anything else."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.sharding.bins import NOBODY, fill

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(LENGTHS)
def test_every_token_has_one_place_and_finds_it_again(lengths: Sequence[int]) -> None:
    gather, segments, scatter = fill(lengths)
    tokens = np.arange(sum(lengths))
    assert np.array_equal(gather.reshape(-1)[scatter], tokens)
    assert (segments != NOBODY).sum() == sum(lengths)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    assert np.array_equal(segments.reshape(-1)[scatter], owners)


@given(LENGTHS)
def test_a_sequence_lies_in_one_row_in_order(lengths: Sequence[int]) -> None:
    _, segments, scatter = fill(lengths)
    width = segments.shape[1]
    for places in np.split(scatter, np.cumsum(lengths)[:-1]):
        assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))
        assert places[0] // width == places[-1] // width


@given(LENGTHS)
def test_rows_are_as_wide_as_the_longest_and_few(lengths: Sequence[int]) -> None:
    """First fit, longest first: all rows but one are more than half full."""
    gather, segments, _ = fill(lengths)
    assert gather.shape == segments.shape
    assert segments.shape[1] == max(lengths)
    filled = (segments != NOBODY).sum(1)
    assert (filled > 0).all()
    assert (filled * 2 <= segments.shape[1]).sum() <= 1


@pytest.mark.parametrize("lengths", [[1], [7], [3, 3, 3]])
def test_equal_lengths_leave_no_gap(lengths: Sequence[int]) -> None:
    gather, segments, _ = fill(lengths)
    assert gather.tolist() == np.arange(sum(lengths)).reshape(-1, lengths[0]).tolist()
    assert (segments != NOBODY).all()


def test_the_types_are_those_of_graph_inputs() -> None:
    assert {array.dtype for array in fill([4, 2, 3])} == {np.dtype(np.int32)}
