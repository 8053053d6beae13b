"""A module that knows nothing of ranks computes the same when it is split by a plan."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_mp.model.errors import LoadError
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding.cut import Cut
from python_mp.sharding.shard import Shard
from python_mp.sharding.split_plan import Plan, Split
from python_mp.sharding.weights import Tensors
from tests.support.peers import Peer, Peers

CPU = torch.device("cpu")
PLAN: Plan = {
    "words": "vocabulary",
    "blocks.*.gated": Split("colwise", Cut(parts=2)),
    "blocks.*.down": "rowwise",
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(10)
        self.gated = nn.Linear(10, 2 * 7)
        self.down = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gated(self.norm(x)).chunk(2, -1)
        y: Tensor = x + self.down(F.silu(gate) * up)
        return y


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 10)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.words(ids))
        return y


@pytest.fixture
def whole() -> Model:
    torch.manual_seed(0)
    return Model().eval()


def shard(whole: Model, peer: Alone, rank: int, size: int) -> Shard:
    given = Tensors(whole.state_dict(), torch.float32)
    return Shard(rank, size, 0, 1, torch.float32, CPU, Path(), {}, peer, given)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_in_parts_as_in_one_piece(whole: Model, size: int) -> None:
    """None of 7, 10 and 11 divides by all of these."""
    ids, peers = torch.arange(11), Peers(size)

    def rank(rank: int) -> Tensor:
        with torch.device("meta"):
            module = Model()
        part = shard(whole, Peer(peers, rank), rank, size).parallelize(module, PLAN)
        with torch.inference_mode():
            y: Tensor = part(ids)
        return y

    with ThreadPoolExecutor(size) as pool, torch.inference_mode():
        for found in pool.map(rank, range(size)):
            torch.testing.assert_close(found, whole(ids))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"blocks.*.up": "colwise"}, r"blocks\.\*\.up is no part of the module"),
        ({"words": "sideways"}, "'sideways' for words; known are colwise, rowwise"),
        ({"blocks.0.norm": "colwise"}, "blocks.0.norm is a LayerNorm, which cannot be split"),
        ({"blocks.0.gated": Split("colwise", Cut(parts=4))}, "14 is not 4 times a multiple of 1"),
    ],
)
def test_a_plan_that_does_not_fit_is_named(whole: Model, plan: Plan, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        shard(whole, Alone(), 0, 2).parallelize(Model(), plan)
