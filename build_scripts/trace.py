"""A module as torch.export sees it: tensors in, tensors out.

The module is called once to learn which inputs it asks for; only those become inputs of the graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from build_scripts.errors import BuildError, refusing
from build_scripts.stand_ins import TracedBatch
from python_mp.model.config import ModelConfig
from python_mp.model.sample_dims import sample_dims
from python_mp.rank.stage import Compute
from python_mp.sharding.bins import fill
from python_mp.sharding.packed import BINS, HIDDEN, HIDDEN_OUT, ROWS
from python_mp.sharding.rectangles import rows

Dims = Mapping[str, Sequence[int]]
UNTRACEABLE = (
    "The module cannot be exported ({why}); make it traceable by torch.export, or serve it with"
    " engine torch."
)
LENGTHS = (7, 5, 6, 2)
"""Of the example batch: no two of its sizes are equal, and none is 1, which export would fix."""


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
    """An exported stage, the names of what goes in and comes out, in order, and what must be true
    of the sizes of its inputs, as torch.export writes it: of others it computes nonsense."""

    program: ExportedProgram
    inputs: list[str]
    outputs: list[str]
    sizes: list[str]

    def names(self) -> dict[str, str]:
        """As metadata of a saved program."""
        names = {"inputs": ",".join(self.inputs), "outputs": ",".join(self.outputs)}
        return {**names, "sizes": json.dumps(self.sizes)}


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
        program = _exported(graph, tuple(tensors[name] for name in names), shapes)
    return Traced(program, names, outputs, _equations(config, program))


def _exported(
    graph: Graph, tensors: tuple[Tensor, ...], shapes: tuple[Any, ...]
) -> ExportedProgram:
    with refusing(UNTRACEABLE):
        return torch.export.export(graph, tensors, dynamic_shapes=shapes)


def _equations(config: ModelConfig, program: ExportedProgram) -> list[str]:
    """Where inputs have free dims, as images have. What torch says of theirs besides, such as that
    none is 1, it needs only to make the graph."""
    is_free = any(dim < 0 for spec in config.inputs for dim in spec.row)
    said: list[str] = getattr(program, "_guards_code", None) or []
    return [each for each in said if "==" in each] if is_free else []


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
