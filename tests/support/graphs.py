"""ONNX graphs from ONNX's own text, with weights beside them."""

from typing import Any

import numpy as np
import onnx.parser
from onnx import ModelProto, numpy_helper

HEAD = '<ir_version: 10, opset_import: ["" : 20, "python_mp" : 1]>'


def graph(text: str, **weights: np.ndarray[Any, Any]) -> ModelProto:
    """`NAME (inputs) => (outputs) <types of what is between> { nodes }`"""
    model = onnx.parser.parse_model(f"{HEAD} {text}")
    tensors = (numpy_helper.from_array(array, name) for name, array in weights.items())
    model.graph.initializer.extend(tensors)
    return model
