"""What a GPU gives an encoder where nothing waits: one copy in, a CUDA graph, one copy out.

    python -m benchmarks.gpu.encoder CHECKPOINT

transformers' own BertModel in bfloat16, attention by `varlen_attn` over packed rows, mean pooling
on the device. A graph is captured for each bucket of tokens and sequences; ids, positions and
cu_seqlens travel in one pinned buffer; vectors come back into pinned memory, which the host copies
while the next batch runs (`depth` 2). Every vector is compared with transformers' float32 on the
CPU, one text at a time.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks.gpu.json_lines import report
from benchmarks.gpu.packed_attention import LONGEST, Lengths
from build_scripts.sentences import sentences

DEPTH = 2
SECONDS = 2.0
Array = np.ndarray[Any, Any]


class Graph:
    """One bucket: static inputs in one buffer, a captured forward, static vectors."""

    def __init__(self, model: Any, tokens: int, sequences: int, pool: Any) -> None:
        self.tokens, self.sequences = tokens, sequences
        self.size = 2 * tokens + sequences + 2
        self.packed = torch.zeros(self.size, dtype=torch.int32, device="cuda")
        self.ids, self.positions, self.cu_seqlens = self.packed.split(
            [tokens, tokens, sequences + 2]
        )
        self._rows = torch.arange(tokens, dtype=torch.int32, device="cuda")
        self._model = model
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.vectors = self._forward()

    def _forward(self) -> Tensor:
        Lengths.cu_seqlens = self.cu_seqlens
        hidden = self._model(
            input_ids=self.ids[None].long(), position_ids=self.positions[None].long()
        ).last_hidden_state[0]
        ends = self.cu_seqlens[1:-1]  # rows that only fill the bucket belong to one sequence more
        owner = torch.searchsorted(ends, self._rows, right=True)
        sums = torch.zeros(self.sequences + 1, hidden.shape[1], device=hidden.device)
        sums.index_add_(0, owner, hidden.float())
        return torch.nn.functional.normalize(sums[:-1])


class Pipeline:
    """Batches one after the other through the graphs, `depth` of them in flight."""

    def __init__(self, graphs: list[Graph], depth: int) -> None:
        self._graphs = graphs
        room = max(graph.size for graph in graphs), max(graph.sequences for graph in graphs)
        self._slots = deque(
            (
                torch.zeros(room[0], dtype=torch.int32).pin_memory(),
                torch.zeros(room[1], 384).pin_memory(),
                torch.cuda.Event(blocking=False),
            )
            for _ in range(depth)
        )
        self._flying: deque[tuple[Any, int]] = deque()

    def forward(self, rows: list[Array]) -> Array | None:
        """Starts the batch; returns the vectors of an earlier one when the pipeline is full."""
        landed = self.land() if not self._slots else None
        lengths = [len(row) for row in rows]
        tokens = sum(lengths)
        graph = next(g for g in self._graphs if g.tokens >= tokens and g.sequences >= len(rows))
        slot = self._slots.popleft()
        staging, vectors, event = slot
        view = staging[: graph.size].numpy()
        view[:tokens] = np.concatenate(rows)
        view[tokens : graph.tokens] = 0
        cu = np.empty(graph.sequences + 2, np.int32)
        cu[0] = 0
        np.cumsum(lengths, out=cu[1 : len(rows) + 1])
        cu[len(rows) + 1 :] = tokens  # empty sequences
        starts = np.repeat(cu[: len(rows)], lengths)
        view[graph.tokens : graph.tokens + tokens] = np.arange(tokens, dtype=np.int32) - starts
        view[graph.tokens + tokens : 2 * graph.tokens] = 0
        view[2 * graph.tokens :] = cu
        graph.packed.copy_(staging[: graph.size], non_blocking=True)
        graph.graph.replay()
        vectors[: len(rows)].copy_(graph.vectors[: len(rows)], non_blocking=True)
        event.record()
        self._flying.append((slot, len(rows)))
        return landed

    def land(self) -> Array:
        slot, count = self._flying.popleft()
        slot[2].synchronize()
        vectors: Array = slot[1][:count].numpy().copy()
        self._slots.append(slot)
        return vectors

    def drain(self) -> Iterator[Array]:
        while self._flying:
            yield self.land()


def main(checkpoint: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = _texts()
    rows = [np.array(ids[:LONGEST], np.int32) for ids in tokenizer(texts)["input_ids"]]
    lengths = [len(row) for row in rows]
    report(texts=len(rows), mean_tokens=sum(lengths) / len(rows), longest=max(lengths))
    reference = _reference(checkpoint, rows)
    model = (
        AutoModel.from_pretrained(checkpoint, dtype=torch.bfloat16, attn_implementation="packed")
        .to("cuda")
        .eval()
    )
    with torch.inference_mode():
        graphs = _capture(model)
        for size in (1, 32, 256, 1024):
            _measure(graphs, rows, reference, size)


def _capture(model: Any) -> list[Graph]:
    pool, graphs = torch.cuda.graph_pool_handle(), []
    buckets = [
        (t, s)
        for t, s in (
            (16, 1),
            (32, 1),
            (64, 1),
            (128, 1),
            (512, 32),
            (1024, 32),
            (1536, 32),
            (2048, 64),
            (4096, 256),
            (8192, 256),
            (10240, 256),
            (12288, 256),
            (16384, 1024),
            (32768, 1024),
            (40960, 1024),
            (49152, 1024),
        )
    ]
    before = torch.cuda.memory_allocated()
    for tokens, sequences in reversed(buckets):  # the largest first: the pool is shared
        began = time.perf_counter()
        graphs.append(Graph(model, tokens, sequences, pool))
        torch.cuda.synchronize()
        if tokens in (16, 2048, 49152):
            report(graph_of_tokens=tokens, captured_in_s=time.perf_counter() - began)
    report(graphs=len(graphs), hold_mib=(torch.cuda.memory_allocated() - before) / 2**20)
    return graphs[::-1]


def _measure(graphs: list[Graph], rows: list[Array], reference: Array, size: int) -> None:
    batches = [
        [rows[(first + n) % len(rows)] for n in range(size)] for first in range(0, 20 * size, size)
    ]
    numbers = [
        [(first + n) % len(rows) for n in range(size)] for first in range(0, 20 * size, size)
    ]
    worst = 1.0
    pipeline = Pipeline(graphs, DEPTH)
    answers = [a for b in batches if (a := pipeline.forward(b)) is not None]
    answers += pipeline.drain()
    for answer, which in zip(answers, numbers, strict=True):
        worst = min(worst, float((answer * reference[which]).sum(1).min()))
    for depth in (1, 2):
        pipeline, done, latencies = Pipeline(graphs, depth), 0, []
        began = time.perf_counter()
        while (now := time.perf_counter()) < began + SECONDS / 2:
            for batch in batches:
                pipeline.forward(batch)
                if depth == 1:
                    for _ in pipeline.drain():
                        pass
                    latencies.append(time.perf_counter() - now)
                    now = time.perf_counter()
            done += len(batches)
        for _ in pipeline.drain():
            pass
        seconds = time.perf_counter() - began
        report(
            texts_a_batch=size,
            in_flight=depth,
            texts_per_second=done * size / seconds,
            batch_ms=median(latencies) * 1e3 if latencies else "",
            one_minus_cosine=1 - worst,
        )


def _reference(checkpoint: str, rows: list[Array]) -> Array:
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        hidden = [
            model(input_ids=torch.from_numpy(row)[None].long()).last_hidden_state[0].mean(0)
            for row in rows
        ]
    return torch.nn.functional.normalize(torch.stack(hidden)).numpy()


def _texts() -> list[str]:
    return [text for text in sentences(400) if len(text) < 400]


if __name__ == "__main__":
    main(str(Path(sys.argv[1])))
