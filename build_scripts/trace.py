"""A module as torch.export sees it: tensors in, tensors out, with stand-ins for batch and peers.

The module is called once to learn which inputs it asks for; only those become inputs of the graph.
Sequences appear in one of two ways: as `cu_seqlens` for our own operator, or as a rectangle for
graphs that other runtimes understand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from build_scripts.errors import BuildError
from python_mp.model.config import ModelConfig
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.engines.onnx_graph import COLLECTIVE, DOMAIN
from python_mp.rank.stage import Compute
from python_mp.sharding import ops
from python_mp.sharding.attention import Bias, Masking
from python_mp.sharding.bins import fill
from python_mp.sharding.packed import BINS, HIDDEN, HIDDEN_OUT

LENGTHS = (7, 5, 6, 2)
"""Of the example batch: no two of its sizes are equal, and none is 1, which export would fix."""


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

    def __init__(self, tensors: Mapping[str, Tensor], rectangular: bool) -> None:
        self._tensors = tensors
        self._rectangular = rectangular
        self.used: dict[str, None] = {}
        self._masks: dict[tuple[bool, int | None], Tensor] = {}

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

    @property
    def is_ragged(self) -> bool:
        return self._rectangular or "cu_seqlens" in self

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
        if sinks is not None:
            raise BuildError("No graph has attention sinks: serve it with engine torch.")
        masking = Masking(causal, window, scale, softcap)
        if bias is not None:
            raise BuildError("What a module adds to its scores no graph has: serve it with torch.")
        if not self._rectangular:
            how = (masking.causal, masking.window, masking.scale, masking.softcap)
            packed: Tensor = ops.attend(q, k, v, self["cu_seqlens"], *how)
            return packed
        if masking.softcap is not None:
            raise BuildError("No ONNX graph caps its scores (softcap): serve it with engine torch.")
        groups = q.shape[1] // k.shape[1]
        gather = self["gather"]
        q, k, v = (
            x.index_select(0, gather.flatten()).view(*gather.shape, *x.shape[1:]).transpose(1, 2)
            for x in (q, k, v)
        )
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        together = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self._mask(masking).to(q.dtype), scale=masking.scale
        )
        return together.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, self["scatter"])

    def _mask(self, masking: Masking) -> Tensor:
        """Float [rows, 1, width, width]: 0 where one place sees the other."""
        key = masking.causal, masking.window
        if key not in self._masks:
            segments = self["segments"]
            seen = segments[:, :, None] == segments[:, None, :]
            if masking.causal or masking.window is not None:
                place = torch.arange(segments.shape[1], device=segments.device)
                apart = place[:, None] - place
                if masking.causal:
                    seen = seen & (apart >= 0)
                if masking.window is not None:
                    seen = seen & (apart.abs() < masking.window)
            self._masks[key] = torch.where(seen[:, None], 0.0, -3e4)  # float16 can hold it.
        return self._masks[key]


class Graph(nn.Module):
    """The module with tensors for arguments; `names` are theirs."""

    def __init__(self, module: Compute, names: list[str], rectangular: bool) -> None:
        super().__init__()
        self.module = module
        self.names = names
        self._rectangular = rectangular

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        given = dict(zip(self.names, tensors, strict=True))
        hidden = given.get(HIDDEN)
        result = self.module(TracedBatch(given, self._rectangular), hidden)  # type: ignore[arg-type]
        return [result] if isinstance(result, Tensor) else list(result.values())


@dataclass(frozen=True)
class Traced:
    """An exported stage and the names of what goes in and comes out, in order."""

    program: ExportedProgram
    inputs: list[str]
    outputs: list[str]

    def names(self) -> dict[str, str]:
        """As metadata of a saved program."""
        return {"inputs": ",".join(self.inputs), "outputs": ",".join(self.outputs)}


def trace(
    module: nn.Module, config: ModelConfig, hidden: Tensor | None, onnx: bool, device: str = "cpu"
) -> Traced:
    """Exports one rank's module with every size that may vary left open.

    Args:
        hidden: an example of what the stage before hands over, of `example_rows(config)` rows;
            None on the first stage.

    Raises:
        BuildError: the module does what cannot be exported.
    """
    rectangular = onnx and config.has_ragged_input
    tensors = example(config, device)
    batch = TracedBatch(tensors, rectangular)
    with torch.no_grad():
        result = module(batch, hidden)
        outputs = [HIDDEN_OUT] if isinstance(result, Tensor) else list(result)
        names = [*batch.used] if hidden is None else [HIDDEN, *batch.used]
        tensors = tensors if hidden is None else {**tensors, HIDDEN: hidden}
        graph = Graph(module, names, rectangular)
        shapes = (tuple(_sizes(config, name) for name in names),)
        try:
            program = torch.export.export(
                graph, tuple(tensors[name] for name in names), dynamic_shapes=shapes
            )
        except BuildError:
            raise
        except Exception as error:
            why = str(error).strip().splitlines()[0]
            raise BuildError(
                f"The module cannot be exported ({why}); make it traceable by torch.export,"
                " or serve it with engine torch."
            ) from error
    return Traced(program, names, outputs)


def example(config: ModelConfig, device: str = "cpu") -> dict[str, Tensor]:
    """Every input a graph may have, for a batch of sequences of LENGTHS."""
    tensors = {
        spec.name: torch.zeros(
            [_rows(spec.ragged), *(abs(dim) for dim in spec.dims[spec.ragged :])],
            dtype=getattr(torch, spec.dtype),
        )
        for spec in config.inputs
        if spec.name != config.parameters.lengths
    }
    if config.has_ragged_input:
        ends = torch.tensor([0, *LENGTHS]).cumsum(0)
        tensors["cu_seqlens"] = ends.int()
        tensors["positions"] = torch.cat([torch.arange(each) for each in LENGTHS]).int()
        tensors |= {n: torch.from_numpy(a) for n, a in zip(BINS, fill(LENGTHS), strict=True)}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _rows(ragged: bool) -> int:
    return sum(LENGTHS) if ragged else len(LENGTHS)


def _sizes(config: ModelConfig, name: str) -> dict[int, Any]:
    """Which dimensions of a graph's input vary, and with what."""
    tokens, sequences = Dim("tokens", min=2), Dim("sequences", min=2)
    if name == "cu_seqlens":
        return {0: Dim("sequences_and_1", min=2)}
    if name in ("gather", "segments"):
        return {0: Dim("rows", min=1), 1: Dim("width", min=1)}
    if name in (HIDDEN, "positions", "scatter"):
        return {0: tokens if config.has_ragged_input else sequences}
    ragged = next(spec.ragged for spec in config.inputs if spec.name == name)
    return {0: tokens if ragged else sequences}
