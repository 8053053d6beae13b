"""Vectors of texts as clients get them: the last step of an ensemble for the task `embed`."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from ..model.errors import LoadError
from . import answering, formats, settings_file


class VectorError(ValueError):
    """A request that is not served; the message says why."""


class TritonPythonModel:
    """SENTENCE_EMBEDDING FP32 [width], and where clients want less of it DIMENSIONS INT32 [1] ->
    EMBEDDING, the leading values in the data type of config.pbtxt."""

    def initialize(self, args: dict[str, str]) -> None:
        try:
            self._usual: int | None = settings_file.read(args).get("truncate_dim")
            self._form = formats.form(args)
        except LoadError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, self._answer, VectorError)

    def _answer(self, request: Any) -> list[Any]:
        vectors = pb_utils.get_input_tensor_by_name(request, "SENTENCE_EMBEDDING").as_numpy()
        width = dimensions(request, vectors.shape[1]) or self._usual
        return [pb_utils.Tensor("EMBEDDING", self._form(vectors[:, :width]))]


def dimensions(request: Any, width: int) -> int | None:
    """How many of a vector's values are wanted; None where the request does not say.

    Raises:
        VectorError: it has no so many, or the rows of one request want different ones.
    """
    given = pb_utils.get_input_tensor_by_name(request, "DIMENSIONS")
    if given is None:
        return None
    wanted = set(given.as_numpy().ravel().tolist())
    if len(wanted) > 1:
        raise VectorError("DIMENSIONS must be the same for all texts of a request.")
    (found,) = wanted
    if not 1 <= found <= width:
        raise VectorError(f"DIMENSIONS is {found}; it can be 1 to {width}.")
    return int(found)
