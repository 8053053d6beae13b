"""A small vision transformer (arXiv:2010.11929): a torch module, and a plan to split it by.

The image is cut into patches, each becomes a token, and the mean over the tokens is classified.
"""

import torch
import torch.nn.functional as F
from torch import nn

from python_mp.sharding.cut import Cut
from python_mp.sharding.split_plan import Split

SIDE, PATCH, CLASSES = 8, 2, 10
DIM, HEAD, MLP, BLOCKS = 64, 16, 256, 4
PATCHES = SIDE // PATCH  # along a side
EPSILON = 1e-6

plan = {
    "blocks.*.qkv": Split("colwise", Cut(parts=3, unit=HEAD)),  # q, k, v; heads stay whole
    "blocks.*.up": "colwise",
    "blocks.*.out": "rowwise",
    "blocks.*.down": "rowwise",
}
layers = "blocks"


def check(batch):
    batch.refuse(~batch["PIXELS"].isfinite(), "PIXELS holds a value that is not finite")


class Classifier(nn.Module):
    """Pixels [n, 8, 8] -> logits [n, 10]."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(PATCH**2, DIM)
        self.positions = nn.Parameter(torch.zeros(PATCHES**2, DIM))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(DIM, EPSILON)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, pixels):
        patches = pixels.view(-1, PATCHES, PATCH, PATCHES, PATCH).transpose(2, 3)
        x = self.patch(patches.reshape(-1, PATCHES**2, PATCH**2)) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


class Block(nn.Module):
    """Self-attention among the 16 tokens of each image, and MLP; each added to what came in."""

    def __init__(self):
        super().__init__()
        self.attention_norm = nn.LayerNorm(DIM, EPSILON)
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.out = nn.Linear(DIM, DIM)
        self.mlp_norm = nn.LayerNorm(DIM, EPSILON)
        self.up = nn.Linear(DIM, MLP)
        self.down = nn.Linear(MLP, DIM)

    def forward(self, x):
        x = x + self.out(self.attend(self.attention_norm(x)))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))

    def attend(self, x):
        """[n, 16, 64] -> [n, 16, 64], or as many of the columns as the rank has heads for."""
        parts = self.qkv(x).unflatten(-1, (3, -1, HEAD))
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind()
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
