"""RMS norms and rotary positions on a CPU, each by one kernel where torch takes many steps.

At one row a step of torch is a microsecond or two whatever it computes, and a small decoder takes a
hundred of them for each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .native import address, address_of_rows, kernels


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels take them: float32 on a CPU, and they are computed now, not traced."""
    return (
        kernels is not None
        and all(each.dtype is torch.float32 and each.device.type == "cpu" for each in tensors)
        and not is_compiling()
    )


def normalised(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * gain, by rows (arXiv:1910.07467).

    Args:
        x: float32 [..., width].
        gain: float32 [width], contiguous.

    Raises:
        ValueError: it is not.
    """
    x = x.contiguous()
    y, width = torch.empty_like(x), x.shape[-1]
    rows, threads = x.numel() // max(width, 1), torch.get_num_threads()
    to, begin = (address(each, torch.float32, rows * width) for each in (y, x))
    by = address(gain, torch.float32, width)
    kernels.normalise(to, begin, by, rows, width, epsilon, threads)
    return y


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + (-second half of x, first half of x) * sin.

    Args:
        x: float32 [tokens, heads, head size], of an even size, whose heads lie one behind the
            other.
        cos, sin: float32 [tokens, head size], contiguous.

    Raises:
        ValueError: they are not.
    """
    tokens, heads, head = x.shape
    y = x.new_empty(tokens, heads, head)
    kernels.rotate(
        address(y, torch.float32, x.numel()),
        address_of_rows(x),
        address(cos, torch.float32, tokens * head),
        address(sin, torch.float32, tokens * head),
        tokens,
        heads,
        head,
        x.stride(0),
        torch.get_num_threads(),
    )
    return y
