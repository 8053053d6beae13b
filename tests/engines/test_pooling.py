"""Vectors of packed rows are those that sentence-transformers makes of rectangles."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from python_mp.model.errors import LoadError
from python_mp.sharding.pooling import MODES, pool

LENGTHS = [7, 1, 40, 3]


@pytest.mark.parametrize("modes", [*([mode] for mode in MODES), ["cls", "mean"]], ids=str)
def test_as_sentence_transformers(modes: list[str]) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    states = torch.randn(sum(LENGTHS), 16)
    given = {
        "token_embeddings": pad_sequence(list(states.split(LENGTHS)), batch_first=True),
        "attention_mask": pad_sequence([torch.ones(each) for each in LENGTHS], batch_first=True),
    }
    wanted = Pooling(16, pooling_mode=modes)(given)["sentence_embedding"]
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    torch.testing.assert_close(pool(states, ends, modes), wanted, atol=1e-6, rtol=1e-5)


def test_another_is_named() -> None:
    with pytest.raises(LoadError, match="pooling 'median' is not known; there are cls, "):
        pool(torch.ones(1, 2), torch.tensor([0, 1]), ["median"])
