"""Norms of transformers, each some eight kernels on a GPU, as torch's own one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILONS = ("variance_epsilon", "eps")
_MOST_ERROR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative: transformers rounds what is normalised before it multiplies, torch only at the end."""


class FusedRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight (arXiv:1910.07467), over the last dimension."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@torch.no_grad()
def fuse(model: nn.Module) -> int:
    """Replaces the norms that compute the same; of those that are only called alike (Gemma's weight
    is one less) nothing is changed. How many there were."""
    norms = {name: part for name, part in model.named_modules() if is_norm(part)}
    found = {n: same for n, part in norms.items() if (same := fused(part, part.weight)) is not None}
    for name, part in found.items():
        model.set_submodule(name, part)
    return len(found)


def is_norm(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return type(part).__name__.endswith("RMSNorm") and isinstance(weight, Tensor)


def fused(part: nn.Module, weight: Any) -> FusedRMSNorm | None:
    """What computes the same as the norm by this weight; None where nothing does."""
    epsilon = next((getattr(part, name) for name in _EPSILONS if hasattr(part, name)), None)
    if epsilon is None or weight.dim() != 1 or weight.dtype not in _MOST_ERROR:
        return None
    found = FusedRMSNorm(weight, float(epsilon))
    numbers = torch.linspace(-2, 3, 2 * len(weight), device=weight.device).view(2, -1)
    probe = (numbers * numbers.new_tensor([[1.0], [epsilon**0.5]])).to(weight.dtype)
    error = _MOST_ERROR[weight.dtype]
    try:
        wanted = part(probe)
    except Exception:  # It takes more than rows.
        return None
    return found if torch.allclose(found(probe), wanted, rtol=error, atol=1e-6) else None
