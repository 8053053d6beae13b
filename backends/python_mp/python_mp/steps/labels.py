"""Logits to the best labels and their scores: the last step of an ensemble of the task `classify`.

The parameter `top_k` of config.pbtxt says how many a request gets that has no TOP_K.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..model.request import Array
from . import activations, answering, settings_file

TOP_K = 5


class TopKError(ValueError):
    """A TOP_K that is not served."""


def best(logits: Array, k: int) -> Array:
    """The indices of the k highest of each row [B, n], int64 [B, k].

    Best first; among equals the one that comes first.
    """
    return np.argsort(-logits, axis=-1, kind="stable")[:, :k]


def the_k(top_k: Array, classes: int) -> int:
    """What all of `top_k` int32 [B, 1] say. Raises TopKError."""
    values = set(top_k.ravel().tolist())
    if len(values) > 1:
        raise TopKError(
            f"TOP_K is {min(values)} for one row and {max(values)} for another;"
            " the rows of a request need the same."
        )
    (k,) = values
    if not 1 <= k <= classes:
        raise TopKError(f"TOP_K is {k}; it must be 1 to {classes}.")
    return int(k)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        said = settings_file.read(args)
        self.labels = np.array([label.encode() for label in said["labels"]], np.object_)
        self.activation = activations.BY_NAME[said["activation"]]
        parameters = json.loads(args["model_config"]).get("parameters", {})
        given = parameters.get("top_k", {}).get("string_value")
        default = min(TOP_K, len(self.labels)) if given is None else int(given)
        self.top_k = np.array(the_k(np.array(default), len(self.labels)))

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, self._tensors, TopKError)

    def _tensors(self, request: Any) -> list[Any]:
        logits = pb_utils.get_input_tensor_by_name(request, "LOGITS").as_numpy()
        given = pb_utils.get_input_tensor_by_name(request, "TOP_K")
        k = the_k(self.top_k if given is None else given.as_numpy(), len(self.labels))
        indices = best(logits, k)
        scores = np.take_along_axis(self.activation(logits), indices, axis=-1)
        return [pb_utils.Tensor("LABEL", self.labels[indices]), pb_utils.Tensor("SCORE", scores)]
