"""A model's ranks as threads of this process."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding.families import skeleton
from python_mp.sharding.families.heads import head
from python_mp.sharding.families.isolation import Isolation
from python_mp.sharding.families.task import Kind, Task
from python_mp.sharding.families.transformers import Encoder
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard
from python_mp.sharding.weights import Tensors
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
                batch, module = Packed(inputs, CPU), Encoder(shard, config)
                module.take_kernels()  # As engine torch does.
                found = module(batch, hidden)
                if kind is None or rank or not shard.is_last:
                    return found
                return head(shard, config, Task(kind))(batch, found)

        with ThreadPoolExecutor(tensor_parallel) as ranks:
            hidden, *_ = ranks.map(rank, range(tensor_parallel))
    (output,) = hidden.values()
    assert isinstance(output, torch.Tensor)
    return output


def tried(model: Any, tensor_parallel: int, stages: int) -> None:
    """As a build tries it: the first rank of each stage, without the others."""
    config = type(model.config).from_dict(model.config.to_dict())
    ranks, rows = tensor_parallel * stages, skeleton.rows(config)
    isolation = Isolation(config, rows, CPU, ranks, (3, 32, 32))
    for stage in range(stages):
        given = Tensors(model.state_dict(), torch.float32)
        place = (0, tensor_parallel, stage, stages)
        shard = Shard(*place, torch.float32, CPU, Path(), {}, Alone(), given)
        isolation.through(Encoder(shard, config))
