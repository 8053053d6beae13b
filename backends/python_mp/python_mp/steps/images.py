"""Pictures to pixels: the first step of an ensemble that classifies images."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..model.request import Array
from . import answering, pictures, settings_file
from .image_processor import Processor
from .pictures import ImageError


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.processor = Processor.of(settings_file.read(args))

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, self._tensors, ImageError)

    def _tensors(self, request: Any) -> list[Any]:
        images = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().ravel()
        made = [self._read(f"IMAGE[{n}]", image) for n, image in enumerate(images)]
        return [pb_utils.Tensor("PIXEL_VALUES", np.stack(made))]

    def _read(self, name: str, data: bytes) -> Array:
        return pictures.read(name, data, lambda image: self.processor.pixels(name, image))
