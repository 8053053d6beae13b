"""A decode step of a Llama-shaped model of 1.1 G parameters in bfloat16, over a paged KV cache.

    python -m benchmarks.gpu.decoder

The kernel is checked against plain attention in float32. A step, from ids to the next ids, is a
CUDA graph.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.page_tables import PAGE, attend, plain
from benchmarks.gpu.timing import device_seconds

LAYERS, HIDDEN, HEADS, KV_HEADS, SIZE, INNER, WORDS = 22, 2048, 32, 4, 64, 5632, 32000
CONTEXT = 512
Cache = tuple[Tensor, Tensor]


class Llama(torch.nn.Module):
    """Random weights; q, k, v and the MLP's two halves are one product each."""

    def __init__(self) -> None:
        super().__init__()
        width = (HEADS + 2 * KV_HEADS) * SIZE
        self.embedding = self._random(WORDS, HIDDEN)
        self.head = self._random(WORDS, HIDDEN)
        self.qkv = torch.nn.ParameterList(self._random(width, HIDDEN) for _ in range(LAYERS))
        self.out = torch.nn.ParameterList(self._random(HIDDEN, HIDDEN) for _ in range(LAYERS))
        self.up = torch.nn.ParameterList(self._random(2 * INNER, HIDDEN) for _ in range(LAYERS))
        self.down = torch.nn.ParameterList(self._random(HIDDEN, INNER) for _ in range(LAYERS))
        self.norm = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)

    @staticmethod
    def _random(*shape: int) -> torch.nn.Parameter:
        made = torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02
        return torch.nn.Parameter(made, requires_grad=False)

    def forward(
        self,
        ids: Tensor,
        cache: list[tuple[Tensor, Tensor]],
        table: Tensor,
        lengths: Tensor,
        slots: Tensor,
        angles: tuple[Tensor, Tensor],
        splits: int,
    ) -> Tensor:
        x = F.embedding(ids, self.embedding)
        for layer in range(LAYERS):
            y = F.rms_norm(x, (HIDDEN,), self.norm, 1e-5)
            q, k, v = (
                F.linear(y, self.qkv[layer])
                .view(-1, HEADS + 2 * KV_HEADS, SIZE)
                .split([HEADS, KV_HEADS, KV_HEADS], 1)
            )
            q, k = _rotate(q, *angles), _rotate(k, *angles)
            keys, values = cache[layer]
            keys.index_copy_(0, slots, k)
            values.index_copy_(0, slots, v.contiguous())
            attended = attend(q.contiguous(), keys, values, table, lengths, splits)
            x = x + F.linear(attended.view(-1, HIDDEN), self.out[layer])
            y = F.rms_norm(x, (HIDDEN,), self.norm, 1e-5)
            gate, up = F.linear(y, self.up[layer]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, self.down[layer])
        return F.linear(F.rms_norm(x, (HIDDEN,), self.norm, 1e-5), self.head).argmax(-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def main() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        for sequences, splits in ((1, 16), (5, 4), (64, 2), (3, 1)):
            print(f"kernel, {sequences} sequences, {splits} splits: {error(sequences, splits):.4f}")
        model = Llama()
        for sequences in (1, 8, 64):
            step(model, sequences)


def error(sequences: int, splits: int) -> float:
    """The largest one of the kernel against plain attention, relative to the largest value."""
    keys, values, table = paged(sequences, pages=40)
    lengths = torch.randint(1, 40 * PAGE + 1, (sequences,), device="cuda").int()
    q = random(sequences, HEADS, SIZE)
    right = plain(q, keys, values, table, lengths).float()
    ours = attend(q, keys, values, table, lengths, splits).float()
    return float((ours - right).abs().max() / right.abs().max())


def step(model: Llama, sequences: int) -> None:
    """Prints what a step takes, and what its attention takes alone."""
    pages = CONTEXT // PAGE + 1
    first = paged(sequences, pages)
    table, cache = first[2], [first[:2], *(paged(sequences, pages)[:2] for _ in range(LAYERS - 1))]
    lengths = torch.full((sequences,), CONTEXT, device="cuda", dtype=torch.int32)
    slots = table[:, (CONTEXT - 1) // PAGE].long() * PAGE + (CONTEXT - 1) % PAGE
    ids = torch.randint(0, WORDS, (sequences,), device="cuda")
    angle = torch.rand(sequences, 1, SIZE // 2, device="cuda", dtype=torch.bfloat16)
    splits = max(1, min(16, 1 << (512 // (sequences * KV_HEADS)).bit_length() - 1))
    q = random(sequences, HEADS, SIZE)
    whole = captured(
        lambda: model(ids, cache, table, lengths, slots, (angle.cos(), angle.sin()), splits)
    )
    alone = captured(lambda: [attend(q, *each, table, lengths, splits) for each in cache])
    ms, attention = device_seconds(whole.replay) * 1e3, device_seconds(alone.replay) * 1e3
    print(
        f"{sequences:3d} sequences: {ms:.2f} ms a step, {sequences / ms * 1e3:.0f} tokens/s;"
        f" attention alone {attention:.3f} ms",
        flush=True,
    )


def captured(call: Any) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def paged(sequences: int, pages: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of so many pages a sequence, and a table that mixes them."""
    rows = sequences * pages * PAGE
    table = torch.randperm(sequences * pages, device="cuda").int().view(sequences, pages)
    return random(rows, KV_HEADS, SIZE), random(rows, KV_HEADS, SIZE), table


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
