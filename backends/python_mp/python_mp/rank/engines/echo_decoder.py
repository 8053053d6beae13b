"""A decoder without weights; made for tests and for measuring what python_mp itself costs.

It keeps ids where another one keeps keys and values, in blocks, and its next id is a hash of all
that lies in the blocks it is shown: a wrong block, order or position, or one lost or doubled token,
changes everything that follows. An id from FAULTS_FROM on asks for trouble when it is computed, see
`fault_id`. Each step takes `module.step_milliseconds` longer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from zlib import crc32

import numpy as np

from ...model import decoders
from ...model.errors import InvalidInput
from ...model.rank_spec import RankSpec
from ...model.request import Array
from ...model.sampling_columns import Real, Whole
from .echo import REFUSE, AtOnce, commit, start

FAULTS_FROM = 1 << 16
_BLOCK = 16
_ARGUMENTS = 1000
_BLOCKS = 1024


def fault_id(fault: int, argument: int = 0) -> int:
    """The id that asks for this fault of engine echo; `argument` below 1000."""
    return FAULTS_FROM + fault * _ARGUMENTS + argument


def next_id(ids: Array, vocabulary: int, seed: int = 0) -> int:
    """What follows these ids, of the prompt and generated."""
    return crc32(np.asarray(ids, np.int32).tobytes(), seed & 0xFFFFFFFF) % vocabulary


def load(spec: RankSpec) -> EchoDecoder:
    start(spec)
    return EchoDecoder(spec)


class EchoDecoder(AtOnce):
    def __init__(self, spec: RankSpec) -> None:
        super().__init__()
        self.blocks = spec.config.parameters.kv_cache_blocks or _BLOCKS
        self._cache = np.full((self.blocks, _BLOCK), -1, np.int32)
        self._vocabulary = min(decoders.read(spec.config.folder).vocabulary, FAULTS_FROM)
        self._answers = spec.answers
        seconds = spec.config.module_parameters.get("step_milliseconds", "0")
        self._seconds = float(seconds) / 1e3

    def _forward(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        ends, tables = inputs["context_lengths"], inputs["block_table"]
        counts = np.diff(inputs["cu_seqlens"])
        owners = np.repeat(np.arange(len(counts)), counts)
        self._meet_faults(inputs["INPUT_IDS"], owners)
        if self._seconds:
            time.sleep(self._seconds)
        # Of each row its position in its sequence.
        at = np.arange(len(owners)) - np.repeat(inputs["cu_seqlens"][1:] - ends, counts)
        self._cache[tables[owners, at // _BLOCK], at % _BLOCK] = inputs["INPUT_IDS"]
        if not self._answers:
            return {}
        ids = [self._next(inputs, at, row) for at, row in enumerate(inputs["sampled"].tolist())]
        return {"NEXT_IDS": np.array(ids, np.int32), **self._logprobs(inputs, ids)}

    def _next(self, inputs: Mapping[str, Array], at: int, row: int) -> int:
        length = int(inputs["context_lengths"][row])
        blocks = inputs["block_table"][row, : -(-length // _BLOCK)]
        draws = inputs["sampling"][at, Real.TEMPERATURE] > 0
        seed = int(inputs["sampling_ints"][at, Whole.SEED]) * bool(draws)
        return next_id(self._cache[blocks].ravel()[:length], self._vocabulary, seed)

    def _logprobs(self, inputs: Mapping[str, Array], ids: list[int]) -> Mapping[str, Array]:
        """Of an id its negative; of the K likeliest the numbers 0 to K - 1."""
        asked = inputs["sampling_ints"][:, Whole.LOGPROBS]
        if not len(ids) or asked.max() < 0:
            return {}
        top = np.tile(np.arange(asked.max(), dtype=np.int32), (len(ids), 1))
        return {
            "LOGPROBS": -np.array(ids, np.float32),
            "TOP_IDS": top,
            "TOP_LOGPROBS": -top.astype(np.float32),
        }

    def _meet_faults(self, ids: Array, owners: Array) -> None:
        faults = np.flatnonzero(ids >= FAULTS_FROM)
        for row in faults.tolist():
            fault, argument = divmod(int(ids[row]) - FAULTS_FROM, _ARGUMENTS)
            if fault == REFUSE:
                raise InvalidInput(f"refused as asked ({argument})", [owners[row]])
            commit(fault, argument)
