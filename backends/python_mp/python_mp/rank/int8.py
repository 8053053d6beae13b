"""Linear layers in int8, by torchao: weights scaled by row, activations by token."""

from __future__ import annotations

import warnings

from torch import nn

from ..errors import LoadError
from .layers import ColumnParallelLinear, RowParallelLinear

LINEAR = (ColumnParallelLinear, RowParallelLinear)


def quantise(module: nn.Module) -> nn.Module:
    """The module, its linear layers' weights replaced in place; the rest stays as it is.

    Raises:
        LoadError: torchao is not installed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        raise LoadError(
            "dtype int8 with engine torch needs torchao: `pip install torchao==0.18.0`,"
            " or use engine onnxruntime"
        ) from None
    for layer in module.modules():
        if isinstance(layer, LINEAR):
            weight = layer.weight
            del layer.weight
            layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    quantize_(
        module, Int8DynamicActivationInt8WeightConfig(), lambda each, _: isinstance(each, LINEAR)
    )
    return module
