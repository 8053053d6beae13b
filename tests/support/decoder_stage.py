"""A decoder's stage in the test's own process."""

from random import Random
from typing import Any

import numpy as np
import torch

from python_mp.model.sampling_columns import Whole
from python_mp.rank.stage import Stage
from tests.support.decoding import VOCABULARY


class Stepped:
    """A stage, asked as the front asks it; it becomes better in between."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self._random = stage, Random(seed)

    def step(self, tensors: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities of all tokens, of the sequences that are sampled."""
        if self._random.random() < 0.5:
            self.stage.improve()
        count = len(tensors["sampled"])
        ints = np.zeros((count, len(Whole)), np.int64)
        ints[:, Whole.LOGPROBS] = VOCABULARY
        reals = np.array([[self._random.choice((0, 1)), 1, 0, 0, 0, 1, 0]] * count, np.float32)
        none = dict.fromkeys(("history", "bias_ids", "bias_values"), np.zeros(0, np.int32))
        ends = dict.fromkeys(("history_cu", "bias_cu"), np.zeros(count + 1, np.int32))
        found = self.stage.forward(
            {name: np.array(value, np.int32) for name, value in tensors.items()}
            | {"sampling": reals.reshape(-1, 7), "sampling_ints": ints, **none, **ends}
            | {"history_prompt": np.zeros(count, np.int32)}
        )
        rows = torch.empty(count, VOCABULARY)
        if not count:
            return rows
        ids, values = (torch.from_numpy(found[name]) for name in ("TOP_IDS", "TOP_LOGPROBS"))
        return rows.scatter_(1, ids.long(), values)
