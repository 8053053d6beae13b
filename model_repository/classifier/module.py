"""A small vision transformer (arXiv:2010.11929), split over ranks by heads and by columns.

The image is cut into patches, each becomes a token, and the mean over the tokens is classified.
All images have the same number of tokens, so attention runs over a rectangle of [n, heads, 16, d].
"""

import torch.nn.functional as F
from torch import nn

from python_mp.sharding.layers import ColumnParallelLinear, LayerNorm, RowParallelLinear
from python_mp.sharding.numerics import linear

SIDE, PATCH, CLASSES = 8, 2, 10
DIM, HEADS, BLOCKS = 64, 4, 4
PATCHES = SIDE // PATCH  # along a side
EPSILON = 1e-6


def build(shard):
    return Classifier(shard)


def check(batch):
    batch.refuse(~batch["PIXELS"].isfinite(), "PIXELS holds a value that is not finite")


class Classifier(nn.Module):
    """PIXELS [n, 8, 8] -> LOGITS [n, 10]; between stages [n, 16, 64]."""

    def __init__(self, shard):
        super().__init__()
        self.embedding = Embedding(shard) if shard.is_first else None
        self.blocks = nn.ModuleList(
            Block(shard, f"blocks.{index}") for index in shard.layers(BLOCKS)
        )
        self.head = Head(shard) if shard.is_last else None

    def forward(self, batch, hidden):
        x = hidden if self.embedding is None else self.embedding(batch["PIXELS"])
        for block in self.blocks:
            x = block(x)
        return x if self.head is None else {"LOGITS": self.head(x)}


class Embedding(nn.Module):
    """[n, 8, 8] -> [n, 16, 64]: a product for each patch's four pixels, plus its position."""

    def __init__(self, shard):
        super().__init__()
        self.register_buffer("weight", shard.weights.full("patch.weight"))
        self.register_buffer("bias", shard.weights.full("patch.bias"))
        self.register_buffer("positions", shard.weights.full("positions"))

    def forward(self, pixels):
        x = pixels.to(self.weight.dtype).view(-1, PATCHES, PATCH, PATCHES, PATCH)
        patches = x.transpose(2, 3).reshape(-1, PATCHES**2, PATCH**2)
        return linear(patches, self.weight, self.bias) + self.positions


class Block(nn.Module):
    """Self-attention and MLP, each after a norm and added to what came in; two all-reduces."""

    def __init__(self, shard, name):
        super().__init__()
        self.heads = shard.share(HEADS, "attention heads")
        self.attention_norm = LayerNorm(shard, f"{name}.attention_norm", EPSILON)
        self.qkv = ColumnParallelLinear(shard, *(f"{name}.{part}" for part in "qkv"))
        self.out = RowParallelLinear(shard, f"{name}.out")
        self.mlp_norm = LayerNorm(shard, f"{name}.mlp_norm", EPSILON)
        self.up = ColumnParallelLinear(shard, f"{name}.up")
        self.down = RowParallelLinear(shard, f"{name}.down")

    def forward(self, x):
        x = x + self.out(self.attend(self.attention_norm(x)))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))

    def attend(self, x):
        """Among the 16 tokens of each image, this rank's heads: [n, 16, 64] -> [n, 16, 64/size]."""
        parts = self.qkv(x).view(-1, PATCHES**2, 3, self.heads, DIM // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind()
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Head(nn.Module):
    """[n, 16, 64] -> [n, 10], from the mean over the tokens."""

    def __init__(self, shard):
        super().__init__()
        self.norm = LayerNorm(shard, "norm", EPSILON)
        self.register_buffer("weight", shard.weights.full("head.weight"))
        self.register_buffer("bias", shard.weights.full("head.bias"))

    def forward(self, x):
        return linear(self.norm(x).mean(1), self.weight, self.bias)
