"""Which sequences a check means, whose they are, and how a rank says so."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from python_mp.model.batch import CU_SEQLENS, Batch
from python_mp.model.errors import InvalidInput
from python_mp.model.request import Request
from python_mp.sharding.packed import Packed
from python_mp.wire.message import Kind, Message, Refusal
from tests.support.replicas import FutureAnswer

LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=8)


def packed(lengths: Sequence[int]) -> Packed:
    cu_seqlens = np.cumsum([0, *lengths]).astype(np.int32)
    return Packed({CU_SEQLENS: cu_seqlens}, torch.device("cpu"))


def refused(batch: Packed, bad: torch.Tensor) -> list[int]:
    with pytest.raises(InvalidInput, match="so it is") as caught:
        batch.refuse(bad, "so it is")
    return list(caught.value.sequences)


@given(LENGTHS, st.data())
def test_rows_are_found_in_their_sequences(lengths: list[int], data: st.DataObject) -> None:
    owner = np.repeat(np.arange(len(lengths)), lengths)
    bad = data.draw(st.lists(st.sampled_from(range(len(owner))), min_size=1))
    mask = torch.zeros(len(owner), 2, dtype=torch.bool)
    mask[bad, 1] = True
    assert refused(packed(lengths), mask) == sorted(set(owner[bad].tolist()))


def test_a_mask_may_be_of_sequences_too() -> None:
    assert refused(packed([3, 1, 2]), torch.tensor([False, True, True])) == [1, 2]
    dense = Packed({"X": np.zeros((3, 2), np.float32)}, torch.device("cpu"))
    assert refused(dense, torch.tensor([[True, False], [False, False], [False, True]])) == [0, 2]
    dense.refuse(torch.zeros(3, 2, dtype=torch.bool), "nothing is wrong")


@given(LENGTHS, st.data())
def test_a_sequence_has_one_owner(counts: list[int], data: st.DataObject) -> None:
    requests = tuple(Request({}, [[1] * count], (), FutureAnswer()) for count in counts)
    owner = [request for request, n in zip(requests, counts, strict=True) for _ in range(n)]
    named = data.draw(st.lists(st.sampled_from(range(len(owner)))))
    expected = [r for r in requests if any(owner[n] is r for n in named)]
    assert Batch(1, requests).owners(named) == expected
    assert Batch(1, requests).owners([len(owner)]) == []


@pytest.mark.parametrize("text", ["short", "\x00\N{SNOWMAN}" * 50_000])
@pytest.mark.parametrize("sequences", [(), (3, 5), tuple(range(1 << 24, (1 << 24) + 100_000))])
def test_any_refusal_fits_into_a_message(text: str, sequences: tuple[int, ...]) -> None:
    said = Message(Kind.REFUSED, text=Refusal("InvalidInput", text, sequences).encode())
    refusal = Refusal.decode(Message.decode(said.encode()).text)
    assert text.startswith(refusal.text)
    assert refusal.sequences == sequences[: len(refusal.sequences)]
    assert bool(refusal.sequences) == bool(sequences)
