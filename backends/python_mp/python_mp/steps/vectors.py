"""Vectors of texts as clients get them: the last step of the ensemble `embed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..model.request import Array
from . import answering


class VectorError(ValueError):
    """A request that is not served; the message says why."""


def unit(vectors: Sequence[Array]) -> list[Array]:
    """Of length 1, float32 [H] each; zeros where there is no length."""
    found = np.stack(vectors)
    norms = np.sqrt(np.einsum("ij,ij->i", found, found))
    return list(found / np.maximum(norms, 1e-12)[:, None])


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.together(requests, _rows, unit, _tensors, VectorError)


def _rows(request: Any) -> list[Array]:
    return list(pb_utils.get_input_tensor_by_name(request, "SENTENCE_EMBEDDING").as_numpy())


def _tensors(vectors: list[Array]) -> list[Any]:
    return [pb_utils.Tensor("EMBEDDING", np.stack(vectors))]
