"""The packed encoder called in a loop, in one process on all cores: what serving may at most reach.

python -m benchmarks.in_process DTYPE SECONDS      prints texts a second
"""

from __future__ import annotations

import os
import sys
import time
from itertools import cycle

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.texts import CHECKPOINT, short_texts, token_ids
from python_mp.model.batch import CU_SEQLENS
from python_mp.rank.collectives import connect
from python_mp.sharding import source
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard

BATCH = 32
CPU = torch.device("cpu")


def main(dtype: str, seconds: float) -> float:
    """Texts a second, in batches of 32 texts as they come."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    shard = Shard(
        rank=0,
        size=1,
        stage=0,
        stages=1,
        dtype=getattr(torch, dtype),
        device=CPU,
        folder=CHECKPOINT.path,
        parameters={},
        communicator=connect("auto", tensor_rank=0, tensor_size=1),
    )
    encoder, ids = (
        source.read(shard.folder).build(shard),
        [row[0] for row in token_ids(short_texts())],
    )
    whole = len(ids) // BATCH * BATCH
    batches = cycle([_pack(ids[start : start + BATCH]) for start in range(0, whole, BATCH)])
    with torch.inference_mode():
        encoder(next(batches), None)
        done, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds:
            encoder(next(batches), None)
            done += BATCH
    return done / (time.perf_counter() - start)


def _pack(rows: list[npt.NDArray[np.int32]]) -> Packed:
    cu_seqlens = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    return Packed({"INPUT_IDS": np.concatenate(rows), CU_SEQLENS: cu_seqlens}, CPU)


if __name__ == "__main__":
    print(main(sys.argv[1], float(sys.argv[2])))
