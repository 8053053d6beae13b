"""Logits to the best labels and their probabilities: the last step of the ensemble `classify`."""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from python_mp.steps import answering


class TopKError(ValueError):
    """A TOP_K that is not served."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float32; shifted by the maximum, so that no exponential overflows."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def best(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of `logits` [B, n], the k most probable: indices int64 [B, k] and probabilities [B, k].

    Best first; among equals the one that comes first.
    """
    indices = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    return indices, np.take_along_axis(softmax(logits), indices, axis=-1)


def the_k(top_k: np.ndarray, classes: int) -> int:
    """What all of `top_k` int32 [B, 1] say. Raises TopKError."""
    values = set(top_k.ravel().tolist())
    if len(values) > 1:
        raise TopKError(
            f"TOP_K is {min(values)} for one image and {max(values)} for another;"
            " the images of a request need the same."
        )
    (k,) = values
    if not 1 <= k <= classes:
        raise TopKError(f"TOP_K is {k}; it must be 1 to {classes}.")
    return k


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.labels = np.array(parameters["labels"]["string_value"].encode().split(), np.object_)
        self.top_k = np.array(int(parameters["top_k"]["string_value"]), np.int32)

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, self._tensors, TopKError)

    def _tensors(self, request: Any) -> list[Any]:
        logits = pb_utils.get_input_tensor_by_name(request, "LOGITS").as_numpy()
        given = pb_utils.get_input_tensor_by_name(request, "TOP_K")
        k = the_k(self.top_k if given is None else given.as_numpy(), len(self.labels))
        indices, scores = best(logits, k)
        return [pb_utils.Tensor("LABEL", self.labels[indices]), pb_utils.Tensor("SCORE", scores)]
