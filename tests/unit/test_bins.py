"""Sequences in a rectangle: everything is in it once, and hardly anything else."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from python_mp.sharding.bins import NOBODY, fill

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(LENGTHS)
def test_every_token_has_one_place_and_finds_it_again(lengths: Sequence[int]) -> None:
    """A sequence lies in one row, in order. Rows are filled first fit, longest first: all but one
    are more than half full."""
    gather, segments, scatter = fill(lengths)
    width = segments.shape[1]
    assert (gather.shape, width) == (segments.shape, max(lengths))
    assert {array.dtype for array in (gather, segments, scatter)} == {np.dtype(np.int32)}
    assert np.array_equal(gather.reshape(-1)[scatter], np.arange(sum(lengths)))
    owners = np.repeat(np.arange(len(lengths)), lengths)
    assert np.array_equal(segments.reshape(-1)[scatter], owners)
    for places in np.split(scatter, np.cumsum(lengths)[:-1]):
        assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))
        assert places[0] // width == places[-1] // width
    filled = (segments != NOBODY).sum(1)
    assert filled.sum() == sum(lengths)
    assert (filled > 0).all()
    assert (filled * 2 <= width).sum() <= 1
