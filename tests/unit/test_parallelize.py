"""A module that knows nothing of ranks computes the same when it is split by a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from python_mp.model.errors import LoadError
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding.cut import Cut
from python_mp.sharding.hollow import hollow
from python_mp.sharding.layers import VocabParallelEmbedding
from python_mp.sharding.shard import Shard
from python_mp.sharding.split_plan import Plan, Split
from python_mp.sharding.weights import Tensors
from tests.support.peers import Peer, Peers, together
from tests.support.plain_modules import Generated

CPU = torch.device("cpu")


def shard(whole: nn.Module, peer: Alone, rank: int, size: int, saved: int = 0) -> Shard:
    """Of a checkpoint that has each tied tensor once, under its first or its last name."""
    names: dict[int, str] = {}
    for name, tensor in sorted(whole.state_dict(keep_vars=True).items(), reverse=bool(saved)):
        names.setdefault(id(tensor), name)
    tensors = {name: whole.state_dict()[name] for name in names.values()}
    given = Tensors(tensors, torch.float32)
    return Shard(rank, size, 0, 1, torch.float32, CPU, Path(), {}, peer, given)


@pytest.mark.parametrize("seed", range(40))
def test_in_parts_as_in_one_piece(seed: int) -> None:
    """None of the sizes need divide; blocks and weights may be shared."""
    torch.manual_seed(seed)
    whole, size = Generated(seed).eval(), 1 + seed % 4
    for tensor in whole.state_dict().values():
        tensor.add_(0.1 * torch.randn_like(tensor))
    ids = torch.arange(whole.words.num_embeddings)

    def compute(rank: int, peers: Peers) -> Tensor:
        part = shard(whole, Peer(peers, rank), rank, size, seed % 2)
        module = part.parallelize(hollow(lambda: Generated(seed)), whole.plan)
        assert not any(each.is_meta for each in module.state_dict().values())
        if not isinstance(module.words, VocabParallelEmbedding):
            tied = whole.head.weight is whole.words.weight
            assert (module.head.weight is module.words.weight) == tied
        with torch.inference_mode():
            y: Tensor = module(ids)
        return y

    with torch.inference_mode():
        expected = whole(ids)
    for found in together(size, compute):
        torch.testing.assert_close(found, expected)


def test_torchs_own_layer_is_not_computed_past_its_linears() -> None:
    """In one piece it reads their weights itself, which on a rank are a part of them."""
    torch.manual_seed(0)
    whole = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    x, plan = torch.rand(2, 3, 8), {"linear1": "colwise", "linear2": "rowwise"}
    was = torch.backends.mha.get_fastpath_enabled()

    def compute(rank: int, peers: Peers) -> Tensor:
        module = hollow(lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval())
        part = shard(whole, Peer(peers, rank), rank, 2).parallelize(module, plan)
        with torch.inference_mode():
            y: Tensor = part(x)
        return y

    try:
        with torch.inference_mode():
            expected = whole(x)
        for found in together(2, compute):
            torch.testing.assert_close(found, expected)
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


class Own(nn.Linear):
    """Computes otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Odd(nn.Module):
    """What a plan cannot split."""

    def __init__(self) -> None:
        super().__init__()
        self.own = Own(4, 4)
        self.norm = nn.LayerNorm(4)
        self.first = self.second = nn.Linear(4, 6)
        self.hooked = nn.Linear(4, 4)
        self.hooked.register_forward_hook(lambda _module, _given, found: found * 2)
        self.lstm = nn.LSTM(4, 4)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"blocks.*.up": "colwise"}, r"blocks\.\*\.up is no part of the module"),
        ({"first": "sideways"}, "'sideways' for first; known are colwise, rowwise"),
        ({"norm": "colwise"}, "norm is a LayerNorm, which cannot be split colwise: leave it whole"),
        ({"own": "rowwise"}, "own is a Own, which cannot be split"),
        ({"lstm": "colwise"}, "lstm is a LSTM, which cannot be split"),
        ({"hooked": "colwise"}, "hooked has hooks, which would be lost"),
        ({"first": "colwise"}, "first and second are one module: the plan must split them alike"),
        ({"*": Split("colwise", Cut(4))}, "cannot be split"),
        ({"first": Split("colwise", Cut(4)), "second": Split("colwise", Cut(4))}, "6 is not 4 tim"),
    ],
)
def test_a_plan_that_does_not_fit_is_named(plan: Plan, said: str) -> None:
    whole = Odd()
    with pytest.raises(LoadError, match=said):
        shard(whole, Alone(), 0, 2).parallelize(Odd(), plan)


def test_weights_that_do_not_fit_are_named() -> None:
    for change, said in (
        (lambda t: t.pop("norm.bias"), "no tensor 'norm.bias'"),
        (
            lambda t: t.update({"own.bias": torch.ones(3)}),
            r"own.bias is \[3\]; the module wants \[4\]",
        ),
    ):
        tensors = Odd().state_dict()
        change(tensors)
        part = replace(shard(Odd(), Alone(), 0, 2), given=Tensors(tensors, torch.float32))
        with pytest.raises(LoadError, match=said):
            part.parallelize(hollow(Odd), {})
