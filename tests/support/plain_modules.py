"""Torch modules as users write them, and one generated from a seed."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_mp.sharding.cut import Cut
from python_mp.sharding.split_plan import Plan, Split


class Mlp(nn.Module):
    """[..., width] -> the same; `gated` has two products side by side in one linear."""

    def __init__(self, width: int, inner: int, gated: bool, bias: bool) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, width), persistent=False)
        self.register_buffer("shift", torch.full((width,), 0.1))
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner * (1 + gated), bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.norm(x) * self.scale + self.shift)
        assert y.shape[-1] == self.up.out_features == self.up.weight.shape[0]
        if self.gated:
            gate, y = y.chunk(2, -1)
            y = F.silu(gate) * y
        assert y.shape[-1] == self.down.in_features == self.down.weight.shape[1]
        z: Tensor = x + self.down(F.gelu(y))
        return z


class Heads(nn.Module):
    """Attention among the rows of x [rows, width]."""

    def __init__(self, width: int, heads: int, size: int, bias: bool) -> None:
        super().__init__()
        self.size = size
        self.qkv = nn.Linear(width, 3 * heads * size, bias=bias)
        self.out = nn.Linear(heads * size, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.size)).permute(1, 2, 0, 3)
        z: Tensor = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
        return z


class Generated(nn.Module):
    """INPUT_IDS [rows] -> [rows, words], by blocks in any order, of which some are one module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = random.Random(seed)
        words, width = choose.randint(5, 17), choose.randint(3, 13)
        self.words = nn.Embedding(words, width)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(width) / n) for n in (1, 2)])
        blocks: list[nn.Module] = []
        for _ in range(choose.randint(1, 3)):
            bias = choose.random() < 0.5
            if choose.random() < 0.5:
                size, heads = choose.randint(1, 4), choose.randint(1, 5)
                blocks.append(Heads(width, heads, size, bias))
            else:
                blocks.append(Mlp(width, choose.randint(1, 15), choose.random() < 0.5, bias))
        if choose.random() < 0.5:
            blocks.append(blocks[0])
        self.nested = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})
        self.head = nn.Linear(width, words, bias=False)
        if choose.random() < 0.5:
            self.head.weight = self.words.weight
        self.plan = self._plan(choose)

    def _plan(self, choose: random.Random) -> Plan:
        plan: dict[str, str | Split] = {"words": choose.choice(["vocabulary", "replicated"])}
        for index, block in enumerate(self.nested["blocks"]):
            name = f"nested.blocks.{index}"
            if isinstance(block, Heads):
                plan[f"{name}.qkv"] = Split("colwise", Cut(3, block.size))
                plan[f"{name}.out"] = Split("rowwise", Cut(1, block.size))
            else:
                assert isinstance(block, Mlp)
                plan[f"{name}.up"] = Split("colwise", Cut(1 + block.gated))
                plan[f"{name}.down"] = "rowwise"
        return plan

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) * self.scales[0] + self.scales[1]
        y: Tensor = self.head(self.nested["blocks"](x))
        return y
