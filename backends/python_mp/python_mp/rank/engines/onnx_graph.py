"""One rank's ONNX graph, cut at its collectives into segments that any runtime can run.

x ─ segment 0 ─ a ▶ DistCollective ▶ b ─ segment 1 ─ ... ─ segment n ─▶ outputs
                 └────────── what is used later ─────────▶
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, compose, helper

COLLECTIVE = "DistCollective"
DOMAIN = "python_mp"


@dataclass(frozen=True)
class Segment:
    """A part without collectives; `collective` is the node after it, None after the last one."""

    model: ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    collective: NodeProto | None


def cut(model: ModelProto) -> list[Segment]:
    """The segments in the order they run. Each holds the weights that its nodes use; they share
    the nodes' order with the model, so cutting is nothing but a scan."""
    parts: list[list[NodeProto]] = [[]]
    collectives: list[NodeProto | None] = []
    for node in model.graph.node:
        if node.op_type == COLLECTIVE:
            collectives.append(node)
            parts.append([])
        else:
            parts[-1].append(node)
    wanted = [{value.name for value in model.graph.output}]
    for part, collective in zip(reversed(parts[1:]), reversed(collectives), strict=True):
        assert collective is not None
        wanted.append(wanted[-1] | set(collective.input) | _read(part))
    wanted.reverse()
    return [
        _segment(model, part, keep | set(collective.input if collective else ()), collective)
        for part, keep, collective in zip(parts, wanted, [*collectives, None], strict=True)
    ]


def join(segments: Sequence[Segment], whole: ModelProto) -> ModelProto:
    """The segments as one graph again, with the inputs and outputs of `whole`. What a segment has
    inside is renamed, so that two may use the same names."""
    pieces = [
        compose.add_prefix(
            segment.model, f"segment{number}/", rename_inputs=False, rename_outputs=False
        )
        for number, segment in enumerate(segments)
    ]
    nodes: list[NodeProto] = []
    for piece, segment in zip(pieces, segments, strict=True):
        nodes += [*piece.graph.node, *([segment.collective] if segment.collective else [])]
    ends = {v.name: v for piece in pieces for v in (*piece.graph.input, *piece.graph.output)}
    for value in (*whole.graph.input, *whole.graph.output):
        ends.pop(value.name, None)
    graph = helper.make_graph(
        nodes,
        whole.graph.name,
        whole.graph.input,
        whole.graph.output,
        [weight for piece in pieces for weight in piece.graph.initializer],
        value_info=[*ends.values()],  # So that it can be cut again.
    )
    opsets = {each.domain: each for piece in (whole, *pieces) for each in piece.opset_import}
    return helper.make_model(graph, opset_imports=[*opsets.values()], ir_version=whole.ir_version)


def _segment(
    model: ModelProto, nodes: list[NodeProto], wanted: set[str], collective: NodeProto | None
) -> Segment:
    weights = [each for each in model.graph.initializer if each.name in _read(nodes)]
    made = {name for node in nodes for name in node.output}
    inputs = sorted(_read(nodes) - made - {each.name for each in weights})
    outputs = sorted(made & wanted)
    known = _known(model.graph)
    graph = helper.make_graph(
        nodes,
        "segment",
        [_untyped(name, known) for name in inputs],
        [_untyped(name, known) for name in outputs],
        weights,
    )
    piece = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return Segment(piece, tuple(inputs), tuple(outputs), collective)


def _read(nodes: list[NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input if name}


def _known(graph: GraphProto) -> dict[str, ValueInfoProto]:
    return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}


def _untyped(name: str, known: dict[str, ValueInfoProto]) -> ValueInfoProto:
    """The value with its element type and any shape."""
    kind = known[name].type.tensor_type.elem_type
    return helper.make_tensor_value_info(name, kind, None)
