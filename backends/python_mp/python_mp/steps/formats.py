"""Vectors in fewer bytes, as sentence-transformers' `quantize_embeddings` makes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..model.errors import LoadError
from ..model.request import Array
from . import settings_file

RANGES = "ranges.json"
Form = Callable[[Array], Array]
"""float32 [vectors, dimensions] -> what clients get."""


def form(args: dict[str, str]) -> Form:
    """By EMBEDDING's data_type in config.pbtxt: TYPE_FP32; TYPE_INT8, of which the version has the
    ranges; or TYPE_UINT8, a bit for each value that is above 0.

    Args:
        args: of `initialize`.

    Raises:
        LoadError: it is another, or there are no ranges.
    """
    (output,) = json.loads(args["model_config"])["output"]
    data_type = output["data_type"]
    if data_type == "TYPE_INT8":
        return Int8(settings_file.read(args, RANGES))
    if data_type not in FORMS:
        known = ", ".join(("TYPE_INT8", *FORMS))
        raise LoadError(f"EMBEDDING has the data_type {data_type}; there are {known}")
    return FORMS[data_type]


def _floats(vectors: Array) -> Array:
    return vectors.astype(np.float32)  # a copy: what was given is Triton's


def _bits(vectors: Array) -> Array:
    """uint8 [vectors, dimensions / 8], the first in the highest bit; filled up with zeros."""
    return np.packbits(vectors > 0, axis=-1)


FORMS = {"TYPE_FP32": _floats, "TYPE_UINT8": _bits}


class Int8:
    """The range of a dimension in 256 equal steps; what lies outside counts as its nearest."""

    def __init__(self, ranges: Mapping[str, Any]) -> None:
        if not ranges:
            raise LoadError(f"TYPE_INT8 is made by {RANGES}, which is not there: build it again")
        lowest = np.asarray(ranges["lowest"], np.float32)
        steps = (np.asarray(ranges["highest"], np.float32) - lowest) / 255
        self._lowest, self._steps = lowest, np.where(steps == 0, np.float32(1), steps)

    def __call__(self, vectors: Array) -> Array:
        """int8 [vectors, dimensions]"""
        width = vectors.shape[1]
        steps = np.floor((vectors - self._lowest[:width]) / self._steps[:width])
        made: Array = (np.clip(steps, 0, 255) - 128).astype(np.int8)
        return made
