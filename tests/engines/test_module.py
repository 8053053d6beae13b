"""A module of one's own may treat what it is given as its own."""

from pathlib import Path

import numpy as np

from tests.support.configs import module_config
from tests.support.replicas import LIMIT, served

IN_PLACE = """
import torch
from torch import nn


def check(batch):
    batch["X"].sub_(8)


class Halved(nn.Module):
    def __init__(self, shard):
        super().__init__()
        self.shard = shard

    def forward(self, batch, hidden):
        x = batch["X"].div_(2)
        batch.cu_seqlens.add_(1)
        return self.shard.all_reduce(x.clone()) if hidden is None else {"Y": hidden + x}


build = Halved
"""


def test_ranks_that_work_in_place_do_not_spoil_each_others_inputs(tmp_path: Path) -> None:
    """They read the same memory."""
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    config = module_config(tmp_path, IN_PLACE, (-1,), ragged=True, **sizes)
    with served(config, tmp_path) as replica:
        for first in range(0, 40, 8):
            asked = [np.arange(first, first + n, dtype=np.float32)[None] for n in range(1, 9)]
            futures = replica.ask_all([{"X": each} for each in asked])
            for each, future in zip(asked, futures, strict=True):
                expected = (each - 8) / 2 * 3
                np.testing.assert_array_equal(future.result(LIMIT)["Y"], expected)
