"""A gated-MLP ranker, split over ranks: the example to copy for a model of your own.

python_mp calls `build(shard)` once on every rank, then the module it returns for every batch.
Column-parallel layers give each rank some of the columns, row-parallel ones add the parts up again,
so between the two every rank works on its own slice, and outside of them all have the same rows.
"""

import torch.nn.functional as F
from torch import nn

from python_mp.sharding.layers import ColumnParallelLinear, RowParallelLinear

LAYERS = 4
EPSILON = 1e-6


def build(shard):
    return Ranker(shard)


def check(batch):
    """Optional: refuse what cannot be computed, before any rank meets another."""
    batch.refuse(~batch["FEATURES"].isfinite(), "FEATURES holds a value that is not finite")


class Ranker(nn.Module):
    """FEATURES [rows, 256] -> SCORE [rows, 1]."""

    def __init__(self, shard):
        super().__init__()
        self.is_last = shard.is_last
        self.blocks = nn.ModuleList(
            Block(shard, f"blocks.{index}") for index in shard.layers(LAYERS)
        )
        if self.is_last:
            self.norm = shard.weights.full("norm.weight")
            self.head = shard.weights.full("head.weight"), shard.weights.full("head.bias")

    def forward(self, batch, hidden):
        """`hidden` is what the stage before returned; None on the first stage."""
        x = batch["FEATURES"].to(self.blocks[0].norm.dtype) if hidden is None else hidden
        for block in self.blocks:
            x = block(x)
        if not self.is_last:
            return x
        return {"SCORE": F.linear(F.rms_norm(x, x.shape[-1:], self.norm, EPSILON), *self.head)}


class Block(nn.Module):
    """x + down(silu(gate(norm(x))) * up(norm(x))), one all-reduce."""

    def __init__(self, shard, name):
        super().__init__()
        self.norm = shard.weights.full(f"{name}.norm.weight")
        self.gate_up = ColumnParallelLinear(shard, f"{name}.gate", f"{name}.up")
        self.down = RowParallelLinear(shard, f"{name}.down")

    def forward(self, x):
        gate, up = self.gate_up(F.rms_norm(x, x.shape[-1:], self.norm, EPSILON)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)
