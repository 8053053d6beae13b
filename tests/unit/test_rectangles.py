"""Rectangles of packed rows: which sequences lie side by side."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from python_mp.sharding.packed import ROWS, Packed
from python_mp.sharding.rectangles import MOST_PADDING, MOST_SCORES, Rectangle, rectangles

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 3000) | st.integers(1, 9), min_size=1, max_size=40)
SHARES = st.sampled_from([0.0, MOST_PADDING])


@given(LENGTHS, SHARES)
def test_every_row_has_one_place_and_few_places_none(lengths: list[int], most: float) -> None:
    found = list(rectangles(lengths, CPU, most))
    rows = torch.cat([each.tokens[each.mask] for each in found])
    assert rows.sort().values.equal(torch.arange(sum(lengths)))
    assert sorted(n for each in found for n in each.sequences) == [*range(len(lengths))]
    for each in found:
        sequences, width = each.mask.shape
        assert each.mask.sum(1).min() >= (1 - most) * width
        assert sequences == 1 or sequences * width**2 <= MOST_SCORES


@given(LENGTHS, SHARES)
def test_a_batch_knows_what_it_has_padded(lengths: list[int], most: float) -> None:
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    batch = Packed({"X": np.arange(ends[-1]), "cu_seqlens": ends}, CPU)
    places = []

    def compute(each: Rectangle) -> torch.Tensor:
        places.append(each.mask.numel())
        return each.take(batch["X"])

    assert batch.in_rectangles(compute, most).equal(batch["X"])
    assert batch.padded == sum(places) - sum(lengths)


@given(LENGTHS)
def test_a_graph_is_given_one_rectangle_after_another(lengths: list[int]) -> None:
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    inputs = {"X": np.arange(ends[-1]), "A": np.arange(len(lengths)), "cu_seqlens": ends}
    batch, hidden, masks = Packed(inputs, CPU), torch.arange(ends[-1]) / 2, []

    def graph(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        masks.append(given["row_mask"])
        rectangle = (given["X"] + given["hidden"])[given["row_tokens"]]
        return {"Y": rectangle.flatten()[given["row_places"]], "B": given["A"]}

    found = batch.through(graph, ["X", "A", "hidden", *ROWS], hidden)
    assert found["Y"].equal(batch["X"] + hidden)
    assert found["B"].equal(batch["A"])
    assert all(mask.sum(1).min() >= (1 - MOST_PADDING) * mask.shape[1] for mask in masks)
    assert batch.padded == sum(int((~mask).sum()) for mask in masks)
