"""A module as torch.export sees it: tensors in, tensors out, with stand-ins for batch and peers.

The module is called once to learn which inputs it asks for; only those become inputs of the graph.
Sequences appear in one of two ways: as `cu_seqlens` for our own operator, or as a rectangle for
graphs that other runtimes understand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from build_scripts.errors import BuildError
from python_mp.model.config import ModelConfig
from python_mp.model.sample_dims import sample_dims
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.engines.onnx_graph import COLLECTIVE, DOMAIN
from python_mp.rank.stage import Compute
from python_mp.sharding import ops
from python_mp.sharding.attention import Bias, Masking, step_by_step
from python_mp.sharding.bins import fill
from python_mp.sharding.packed import BINS, HIDDEN, HIDDEN_OUT, ROWS
from python_mp.sharding.rectangles import MOST_PADDING, Rectangle, rows

Dims = Mapping[str, Sequence[int]]
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


class Graph(nn.Module):
    """The module with tensors for arguments; `names` are theirs."""

    def __init__(self, module: Compute, names: list[str], **kind: bool) -> None:
        super().__init__()
        self.module = module
        self.names = names
        self._kind = kind

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        given = dict(zip(self.names, tensors, strict=True))
        hidden = given.get(HIDDEN)
        result = self.module(TracedBatch(given, **self._kind), hidden)  # type: ignore[arg-type]
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
    module: nn.Module,
    config: ModelConfig,
    hidden: Tensor | None,
    onnx: bool,
    device: str = "cpu",
    said: Dims | None = None,
    longest: int | None = None,
) -> Traced:
    """Exports one rank's module with every size that may vary left open.

    Args:
        hidden: an example of what the stage before hands over, of `example_rows(config)` rows;
            None on the first stage.
        said: dims of inputs that have a -1.
        longest: tokens of the longest sequence that the module takes, where it has a bound.

    Raises:
        BuildError: the module does what cannot be exported.
    """
    if len(config.groups) > 1:
        raise BuildError(
            "Inputs with lengths of their own (parameter lengths) no graph has: take engine torch."
        )
    is_ragged = config.has_ragged_input
    kind = {"is_ragged": is_ragged, "rectangular": onnx and is_ragged}
    tensors = example(config, device, said)
    batch = TracedBatch(tensors, **kind)
    with torch.no_grad():
        result = module(batch, hidden)
        outputs = [HIDDEN_OUT] if isinstance(result, Tensor) else list(result)
        names = [*batch.used] if hidden is None else [HIDDEN, *batch.used]
        tensors = tensors if hidden is None else {**tensors, HIDDEN: hidden}
        graph = Graph(module, names, **kind)
        shapes = (tuple(_sizes(config, name, longest) for name in names),)
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


def example(
    config: ModelConfig, device: str = "cpu", said: Dims | None = None
) -> dict[str, Tensor]:
    """Every input a graph may have, for a batch of sequences of LENGTHS."""
    tensors = {
        spec.name: torch.zeros(
            [_rows(spec.ragged), *sample_dims(spec, said or {})[spec.ragged :]],
            dtype=getattr(torch, spec.dtype),
        )
        for spec in config.inputs
        if spec.name in config.batch_inputs
    }
    if config.has_ragged_input:
        ends = torch.tensor([0, *LENGTHS]).cumsum(0)
        tensors["cu_seqlens"] = ends.int()
        tensors["positions"] = torch.cat([torch.arange(each) for each in LENGTHS]).int()
        tensors |= {n: torch.from_numpy(a) for n, a in zip(BINS, fill(LENGTHS), strict=True)}
        tensors |= dict(zip(ROWS, rows(LENGTHS), strict=True))
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _rows(ragged: bool) -> int:
    return sum(LENGTHS) if ragged else len(LENGTHS)


def _sizes(config: ModelConfig, name: str, longest: int | None) -> dict[int, Any]:
    """Which dimensions of a graph's input vary, and with what."""
    tokens, sequences = Dim("tokens", min=2), Dim("sequences", min=2)
    if name == "cu_seqlens":
        return {0: Dim("sequences_and_1", min=2)}
    if name in ("gather", "segments"):
        return {0: Dim("rows", min=1), 1: Dim("width", min=1)}
    if name in ("row_tokens", "row_mask"):
        return {0: sequences, 1: Dim("longest", min=1, max=longest)}
    if name in (HIDDEN, "positions", "scatter", "row_places"):
        return {0: tokens if config.has_ragged_input else sequences}
    spec = next(spec for spec in config.inputs if spec.name == name)
    free = {1 + n: Dim.DYNAMIC for n, dim in enumerate(spec.row) if dim < 0}
    return {0: tokens if spec.ragged else sequences, **free}
