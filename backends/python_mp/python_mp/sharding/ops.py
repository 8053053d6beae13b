"""What a compiled graph calls back: operators that torch.export keeps whole.

`all_reduce` meets the rank's peers, so a process can run the graphs of one rank only.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from ..rank.collectives import Communicator
from .attention import Masking, attention

_communicator: Communicator | None = None


def connect(communicator: Communicator) -> None:
    """Whom `all_reduce` adds up with, from now on in this process."""
    global _communicator
    _communicator = communicator


@library.custom_op("python_mp::all_reduce", mutates_args=())
def all_reduce(x: Tensor) -> Tensor:
    """The sum over the stage's ranks."""
    if _communicator is None:
        raise RuntimeError("all_reduce before connect")
    return _communicator.all_reduce(x.clone(memory_format=torch.contiguous_format))


@library.custom_op("python_mp::attend", mutates_args=())
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`attention` of packed sequences that lie where `cu_seqlens` says."""
    masking = Masking(causal, window, scale, softcap)
    return attention(q, k, v, cu_seqlens.diff().tolist(), masking)


@all_reduce.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
