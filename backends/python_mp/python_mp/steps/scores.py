"""How well a text answers a query: the last step of an ensemble of the task `rerank`."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from . import activations, answering, settings_file


class ScoreError(ValueError):
    """A request that is not served; the message says why."""


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.activation = activations.BY_NAME[settings_file.read(args)["activation"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, self._tensors, ScoreError)

    def _tensors(self, request: Any) -> list[Any]:
        logits = pb_utils.get_input_tensor_by_name(request, "LOGITS").as_numpy()
        return [pb_utils.Tensor("SCORE", self.activation(logits))]
