"""A stage's first batch, of zeros, before anybody waits for an answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from ..model.batch import check_output
from ..model.config import ModelConfig, TensorSpec
from ..model.errors import InvalidInput, LoadError, PythonMpError, RequestFailed
from ..model.request import Array
from ..model.sample_dims import sample_dims
from .capturing import Forward, capture

log = logging.getLogger(__name__)

MOST_CAPTURED = 8192
"""Tokens of a batch that is replayed: addresses are taken for so many, memory as it is written."""
Dims = Mapping[str, Sequence[int]]


def warm_up(forward: Forward, config: ModelConfig, said: Dims) -> None:
    """One batch of zeros, so that a module or weights of the wrong shape fail the load and the
    first request is no slower than others.

    Args:
        said: dims of inputs that have a -1. Where one is not said, that the module raises for the
            usual size is only logged.

    Raises:
        LoadError: the module raised. That its `check` refuses zeros is all right.
    """
    rows = max(1, config.parameters.min_sequence_length)
    zeros = _zeros(config, said, rows)
    guessed = [s.name for s in config.inputs if s.name in zeros.keys() - said and -1 in s.row]
    try:
        outputs = forward(zeros)
        for spec in config.outputs if outputs else ():
            check_output(outputs, spec, rows if spec.ragged else 1)
            _compare(spec, outputs[spec.name].shape[1:])
    except InvalidInput:
        pass
    except RequestFailed as error:
        raise LoadError(f"of a batch of zeros: {error}") from None
    except PythonMpError:
        raise
    except Exception as error:
        text = f"the module raised {type(error).__name__} for a batch of zeros: {error}"
        if not guessed:
            raise LoadError(text) from error
        shapes = {name: list(zeros[name].shape) for name in guessed}
        log.warning(
            "not warmed up: %s, of shapes %s; see shapes.samples of recipe.toml", text, shapes
        )


def capture_batches(forward: Forward, module: object, config: ModelConfig) -> None:
    """Of texts."""

    def batch(lengths: Sequence[int]) -> Mapping[str, Array]:
        inputs = _zeros(config, {}, sum(lengths))
        if "INPUT_IDS" in inputs:
            inputs["INPUT_IDS"] = np.arange(sum(lengths), dtype=np.int32) % 2
        ends = np.cumsum([0, *lengths]).astype(np.int32)
        return inputs | {group.cu_seqlens: ends for group in config.groups}

    if config.has_ragged_input:
        capture(forward, module, min(config.parameters.max_batch_tokens, MOST_CAPTURED), batch)


def _zeros(config: ModelConfig, said: Dims, rows: int) -> dict[str, Array]:
    zeros = {
        s.name: np.zeros([rows if s.ragged else 1, *sample_dims(s, said)[s.ragged :]], s.dtype)
        for s in config.inputs
        if not s.optional and s.name in config.batch_inputs
    }
    for group in config.groups if config.has_ragged_input else ():
        zeros[group.cu_seqlens] = np.array([0, rows], np.int32)
    return zeros


def _compare(spec: TensorSpec, row: tuple[int, ...]) -> None:
    if any(want not in (-1, size) for want, size in zip(spec.row, row, strict=True)):
        log.warning(
            "output '%s' has rows of shape %s; config.pbtxt says %s, which Triton tells clients",
            *(spec.name, list(row), list(spec.row)),
        )
