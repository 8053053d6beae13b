"""What stands for a batch and a rank's peers while a module becomes a graph.

Sequences appear in one of two ways: as `cu_seqlens` for our own operator, or as a rectangle for
graphs that other runtimes understand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from build_scripts.errors import BuildError
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.engines.onnx_graph import COLLECTIVE, DOMAIN
from python_mp.sharding import ops
from python_mp.sharding.attention import Bias, Masking, step_by_step
from python_mp.sharding.packed import ROWS
from python_mp.sharding.rectangles import MOST_PADDING, Rectangle


class TracedPeers:
    """A communicator whose calls become nodes of the graph."""

    def __init__(self, rank: int, size: int, onnx: bool) -> None:
        self.rank, self.size = rank, size
        self._onnx = onnx
        ops.connect(Alone())  # While the module is tried out: its sums do not matter.

    def all_reduce(self, x: Tensor) -> Tensor:
        if not self._onnx:
            reduced: Tensor = ops.all_reduce(x)
            return reduced
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{COLLECTIVE}",
            (x,),
            {
                "collective_operation": "all_reduce",
                "reduce_op": "sum",
                "root": -1,
                "group_size": 0,
                "nb_rank": self.size,
            },
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )

    def __getattr__(self, name: str) -> Any:
        raise BuildError(
            f"The module calls communicator.{name}; what is compiled may use all_reduce only:"
            " serve it with engine torch."
        )


class TracedBatch:
    """The `Packed` of a graph; `used` has the inputs that were asked for, in that order."""

    def __init__(
        self, tensors: Mapping[str, Tensor], *, is_ragged: bool, rectangular: bool = False
    ) -> None:
        self._tensors = tensors
        self._rectangular = rectangular
        self.is_ragged = is_ragged
        self.used: dict[str, None] = {}
        self._masks: dict[tuple[bool, int | None, Bias | None], Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        self.used[name] = None
        return self._tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getattr__(self, name: str) -> Any:
        raise BuildError(
            f"The module uses batch.{name}, which a graph cannot have: use batch.attend and"
            " batch.positions, or serve it with engine torch."
        )

    @property
    def positions(self) -> Tensor:
        return self["positions"]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        bias: Bias | None = None,
    ) -> Tensor:
        masking = Masking(causal, window, scale, softcap)
        if not self._rectangular and bias is None and sinks is None:
            how = (masking.causal, masking.window, masking.scale, masking.softcap)
            packed: Tensor = ops.attend(q, k, v, self["cu_seqlens"], *how)
            return packed
        groups = q.shape[1] // k.shape[1]
        gather = self["gather"]
        q, k, v = (
            x.index_select(0, gather.flatten()).view(*gather.shape, *x.shape[1:]).transpose(1, 2)
            for x in (q, k, v)
        )
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mask = self._mask(masking, bias).to(q.dtype)
        if masking.softcap is None and sinks is None:
            together = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=masking.scale)
        else:
            together = step_by_step(q, k, v, masking, mask, sinks)
        return together.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, self["scatter"])

    def in_rectangles(
        self, compute: Callable[[Rectangle], Tensor], most_padding: float = MOST_PADDING
    ) -> Tensor:
        """As `Packed.in_rectangles`, in one: a graph cannot sort sequences by their lengths."""
        if not most_padding:
            raise BuildError(
                "This model computes texts of one length only beside each other, which no graph"
                " can sort: serve it with engine torch."
            )
        tokens, mask, places = (self[name] for name in ROWS)
        return compute(Rectangle([], tokens, mask)).flatten(0, 1).index_select(0, places)

    def _mask(self, masking: Masking, bias: Bias | None) -> Tensor:
        """Float [rows, 1 or heads, width, width]: 0 where one place sees the other, and with what
        is added to its score."""
        key = masking.causal, masking.window, bias
        if key not in self._masks:
            seen = self._seen(masking)
            self._masks[key] = seen if bias is None else seen + self._added(bias)
        return self._masks[key]

    def _added(self, bias: Bias) -> Tensor:
        """Float [rows, heads, width, width]: the bias of two rows by their places in a sequence."""
        gather = self["gather"]
        whole: Tensor = inspect.unwrap(bias)(
            gather.shape[1]
        )  # What caches it knows no symbolic length.
        within = self["positions"].index_select(0, gather.flatten()).view(gather.shape).long()
        return whole[:, within[:, :, None], within[:, None, :]].transpose(0, 1)

    def _seen(self, masking: Masking) -> Tensor:
        """Float [rows, 1, width, width]: 0 where one place sees the other."""
        segments = self["segments"]
        seen = segments[:, :, None] == segments[:, None, :]
        if masking.causal or masking.window is not None:
            place = torch.arange(segments.shape[1], device=segments.device)
            apart = place[:, None] - place
            if masking.causal:
                seen = seen & (apart >= 0)
            if masking.window is not None:
                seen = seen & (apart.abs() < masking.window)
        return torch.where(seen[:, None], 0.0, -3e4)  # float16 can hold it.
