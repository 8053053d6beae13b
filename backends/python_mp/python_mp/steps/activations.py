"""From logits to scores, over the last axis, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..model.request import Array


def softmax(logits: Array) -> Array:
    """Shifted by the maximum, so that no exponential overflows."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return scores


def sigmoid(logits: Array) -> Array:
    """By exponentials of numbers below 0 only, so that none overflows."""
    small = np.exp(-np.abs(logits))
    scores: Array = np.where(logits >= 0, 1, small).astype(np.float32) / (1 + small)
    return scores


def identity(logits: Array) -> Array:
    return logits


BY_NAME: Mapping[str, Callable[[Array], Array]] = {
    each.__name__: each for each in (softmax, sigmoid, identity)
}
