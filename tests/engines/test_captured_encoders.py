"""Encoders whose batches are replayed compute what transformers does; and which are replayed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding.families.transformers import Encoder
from python_mp.sharding.native import kernels
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard
from python_mp.sharding.weights import Tensors
from tests.support.families import FAMILIES, LENGTHS, asked

pytestmark = pytest.mark.skipif(kernels is None, reason="the C extension was not built")
CPU = torch.device("cpu")
REPLAYED = (
    *("bert", "roberta", "xlm_roberta", "distilbert", "electra", "eurobert"),
    *("gpt2", "llama", "qwen3"),
)
"""Of the others T5 adds to its scores what depends on a text's length; MPNet has no packed rows."""
ALWAYS = ("bert", 1), ("gpt2", 2), ("llama", 2), ("distilbert", 1), ("t5", 1), ("mpnet", 1)


class Stages:
    """One rank each, as engine torch makes them."""

    def __init__(self, model: Any, count: int) -> None:
        config = type(model.config).from_dict(model.config.to_dict())
        given = Tensors(model.state_dict(), torch.float32)
        self.encoders = [
            Encoder(Shard(0, 1, n, count, torch.float32, CPU, Path(), {}, Alone(), given), config)
            for n in range(count)
        ]
        for each in self.encoders:
            each.take_kernels()

    def capture(self, most: int) -> bool:
        every = [each.capture(most) for each in self.encoders]
        for lengths in every[0]:
            ids = np.arange(sum(lengths), dtype=np.int32) % 2
            self.compute(ids, np.cumsum([0, *lengths]).astype(np.int32))
        return all(each.is_replayed for each in self.encoders)

    @torch.inference_mode()
    def compute(self, ids: Any, ends: Any) -> torch.Tensor:
        hidden: Any = None
        for each in self.encoders:
            hidden = each(Packed({"INPUT_IDS": ids, "cu_seqlens": ends}, CPU), hidden)
        found: torch.Tensor = hidden["HIDDEN_STATES"]
        return found.clone()


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        pytest.param(name, stages, marks=() if (name, stages) in ALWAYS else pytest.mark.campaign)
        for name, stages in itertools.product((*REPLAYED, "t5", "mpnet"), (1, 2))
    ],
)
def test_as_transformers_itself(name: str, stages: int) -> None:
    """All texts together, and each for itself; also more rows than there is room for."""
    family = FAMILIES[name]
    model = family.make()
    inputs, wanted = asked(family, model)
    ids, ends = inputs["INPUT_IDS"], inputs["cu_seqlens"]
    served = Stages(model, stages)
    assert served.capture(sum(LENGTHS)) == (name in REPLAYED)
    for copies in (1, 2):
        many = np.concatenate([ends, *(ends[1:] + n * ends[-1] for n in range(1, copies))])
        found = served.compute(np.tile(ids, copies), many.astype(np.int32))
        torch.testing.assert_close(found, wanted.repeat(copies, 1), atol=2e-5, rtol=0.0)
    for start, stop in itertools.pairwise(ends):
        alone = served.compute(ids[start:stop], np.array([0, stop - start], np.int32))
        torch.testing.assert_close(alone, wanted[start:stop], atol=2e-5, rtol=0.0)
