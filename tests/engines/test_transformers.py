"""Hugging Face's modules, packed and split, compute what transformers computes for one text."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from python_mp.sharding.families.heads import head
from python_mp.sharding.families.task import Kind, Task
from python_mp.sharding.families.transformers import Encoder
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard
from python_mp.sharding.weights import Tensors
from tests.support.families import FAMILIES, HEADS, LENGTHS, asked
from tests.support.peers import Peer, Peers

CPU = torch.device("cpu")


def served(
    model: Any,
    inputs: Mapping[str, Any],
    tensor_parallel: int,
    stages: int,
    kind: Kind | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """What all ranks together make of it."""
    hidden: Any = None
    for stage in range(stages):
        peers = Peers(tensor_parallel)

        def rank(rank: int, stage: int = stage, peers: Peers = peers, hidden: Any = hidden) -> Any:
            given = Tensors(model.state_dict(), dtype)
            place = (rank, tensor_parallel, stage, stages)
            shard = Shard(*place, dtype, CPU, Path(), {}, Peer(peers, rank), given)
            config = type(model.config).from_dict(model.config.to_dict())
            with torch.inference_mode():
                batch = Packed(inputs, CPU)
                found = Encoder(shard, config)(batch, hidden)
                if kind is None or rank or not shard.is_last:
                    return found
                return head(shard, config, Task(kind))(batch, found)

        with ThreadPoolExecutor(tensor_parallel) as ranks:
            hidden, *_ = ranks.map(rank, range(tensor_parallel))
    (output,) = hidden.values()
    assert isinstance(output, torch.Tensor)
    return output


@pytest.mark.parametrize("name", FAMILIES)
def test_as_transformers_itself(name: str) -> None:
    """In one piece, split where it does not divide, in stages, and both."""
    family = FAMILIES[name]
    model = family.make()
    inputs, wanted = asked(family, model)
    for tensor_parallel, stages in ((1, 1), (2, 1), (3, 1), (1, 2), (2, 3)):
        found = served(model, inputs, tensor_parallel, stages)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_in_16_bits(name: str) -> None:
    """Means of texts or images, as embeddings are, against float32."""
    family = FAMILIES[name]
    model = family.make()
    inputs, wanted = asked(family, model)
    for dtype, bound in ((torch.bfloat16, 0.999), (torch.float16, 0.99999)):
        found = served(model, inputs, 2, 2, dtype=dtype)
        assert found.dtype == dtype
        assert torch.cosine_similarity(means(found), means(wanted), dim=-1).min() >= bound


def means(hidden: torch.Tensor) -> torch.Tensor:
    """[texts or images, hidden]"""
    each = hidden.float() if hidden.dim() == 3 else hidden.float().split(list(LENGTHS))
    return torch.stack([rows.mean(0) for rows in each])


@pytest.mark.parametrize(("task", "name"), [(t, n) for t, names in HEADS.items() for n in names])
def test_classes_as_transformers_itself(task: Kind, name: str) -> None:
    family = FAMILIES[name].with_head(task)
    model = family.make()
    inputs, wanted = asked(family, model)
    for tensor_parallel, stages in ((1, 1), (2, 2)):
        found = served(model, inputs, tensor_parallel, stages, task)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0.0)
