"""What modules do at every call for training, or for options that nobody uses here, is left out.

A text of average length is a few milliseconds' work, of which this was a tenth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import GELUActivation

from ..gelu import Gelu


class Same:
    """In the place of a dropout: what modules call, and the attribute that they may read."""

    p = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return x


class Known:
    """In the place of a config, whose every attribute is looked for in many places: the one that
    each attention asks for in each call, and by way of the config all others."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._attn_implementation = config._attn_implementation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_config"], name)


def take(model: nn.Module) -> None:
    """Changes how the module's parts are called, not what it computes. In the end, since parts that
    are replaced by way of anything but `setattr` would not be seen."""
    for module in model.modules():
        if "feed_forward_chunk" in vars(type(module)):
            vars(sys.modules[type(module).__module__])["apply_chunking_to_forward"] = _unchunked
        has_config = isinstance(vars(module).get("config"), PretrainedConfig)
        if has_config and not isinstance(module, PreTrainedModel):  # These make masks by it.
            vars(module)["config"] = Known(module.config)
        for name, part in module._modules.items():
            if _is_gelu(part):
                module._modules[name] = Gelu()
        for name, part in module._modules.items():
            # nn.Module finds its parts last, in three dicts, where all other places have failed.
            vars(module)[name] = Same() if type(part) is nn.Dropout else part


def _is_gelu(part: object) -> bool:
    by_torch = type(part) is nn.GELU and part.approximate == "none"
    return by_torch or (type(part) is GELUActivation and part.act is nn.functional.gelu)


def _unchunked(
    forward: Callable[..., Tensor], _chunk_size: int, _dim: int, *tensors: Tensor
) -> Tensor:
    """transformers asks for the function's signature at every call, before it does this."""
    return forward(*tensors)
