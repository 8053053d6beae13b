"""Norms and rotations of transformers' modules by kernels of ours, on CPUs.

Each is taken only where it computes the same as the module's own code, which is tried when the
module is loaded: libraries have several norms and rotations of like names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import by_row
from ..native import kernels
from . import norms
from .attending import is_computing

ROTARY = "apply_rotary_pos_emb"
"""What modules call for positions, in the file where they are."""
NEAR = 1e-5


def take(model: nn.Module) -> None:
    """Changes how norms and rotations are called, of a module whose weights are there."""
    first = next(model.parameters(), None)
    if kernels is None or (first is not None and first.device.type != "cpu"):
        return
    for module in model.modules():
        names = vars(sys.modules[type(module).__module__])
        if ROTARY in names and not isinstance(names[ROTARY], Rotary):
            names[ROTARY] = Rotary(names[ROTARY])
        for name, part in module._modules.items():
            if (norm := _norm(part)) and name in vars(module):
                vars(module)[name] = norm


class Rotary:
    """In the place of the function. Whatever is no batch of ours is still computed by that."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self._own = own
        self.is_same = self._tried()

    def __call__(self, *given: Any, **named: Any) -> Any:
        if named or len(given) != 4 or not (self.is_same and is_computing() and _fits(*given)):
            return self._own(*given, **named)
        return _rotated(*given)

    def _tried(self) -> bool:
        draw = torch.Generator().manual_seed(1)
        q, k, cos, sin = (
            torch.randn(*shape, generator=draw, device="cpu").transpose(1, len(shape) - 2)
            for shape in ((1, 3, 4, 16), (1, 3, 2, 16), (1, 3, 16), (1, 3, 16))
        )
        try:
            wanted = self._own(q, k, cos, sin)
        except Exception:  # It takes something else by this name.
            return False
        found = _rotated(q, k, cos, sin)
        return all(_is_near(*each) for each in zip(found, wanted, strict=True))


class Norm:
    """In the place of a part; what else modules ask of it, it says itself."""

    def __init__(self, part: nn.Module, gain: Tensor, epsilon: float) -> None:
        self._part, self._gain, self._epsilon = part, gain, epsilon

    def __call__(self, x: Tensor) -> Tensor:
        if not by_row.fits(x):
            found: Tensor = self._part(x)
            return found
        return by_row.normalised(x, self._gain, self._epsilon)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_part"], name)


def _norm(part: nn.Module | None) -> Norm | None:
    """What computes the same as an RMS norm; None of anything else."""
    if part is None or not norms.is_norm(part) or part._forward_hooks:
        return None
    weight = part._parameters.get("weight")
    if weight is None or not by_row.fits(weight):
        return None
    with torch.inference_mode():
        for gain in (weight.detach().contiguous(), 1 + weight.detach()):  # Gemma's adds 1.
            if found := norms.fused(part, gain):
                return Norm(part, gain, found.epsilon)
    return None


def _fits(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """q, k: [1, heads, tokens, head size]; cos, sin: [1, tokens, head size]."""
    size = q.shape[-1]
    lie = all(x.dim() == 4 and x.shape[0] == 1 and x.stride()[1::2] == (size, 1) for x in (q, k))
    same = cos.shape == sin.shape == (1, q.shape[2], size) and k.shape[-1] == size
    return lie and same and size % 2 == 0 and by_row.fits(q, k, cos, sin)


def _rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos[0].contiguous(), sin[0].contiguous()
    found, other = (
        by_row.rotated(x[0].transpose(0, 1), cos, sin).transpose(0, 1)[None] for x in (q, k)
    )
    return found, other


def _is_near(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=NEAR, atol=NEAR)
