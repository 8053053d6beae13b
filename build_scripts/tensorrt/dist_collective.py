"""DistCollective nodes set aside for tools that do not know them, and put back afterwards.

    matmul ─ a ▶ DistCollective ▶ b ─ add        becomes        matmul ─▶ a     b ─▶ add

with `a` an output of the graph and `b` an input. ModelOpt keeps both in float32 then: everything
around the sums over ranks gets smaller, and they stay as exact as they were.
"""

from collections.abc import Sequence
from graphlib import TopologicalSorter

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from build_scripts.errors import BuildError
from python_mp.rank.engines.onnx_graph import COLLECTIVE


def set_aside(model: ModelProto) -> tuple[ModelProto, list[NodeProto]]:
    """A copy of the model without its collectives, and these."""
    opened = ModelProto()
    opened.CopyFrom(model)
    nodes, collectives = list[NodeProto](), list[NodeProto]()
    for node in model.graph.node:
        (collectives if node.op_type == COLLECTIVE else nodes).append(node)
    del opened.graph.node[:]
    opened.graph.node.extend(nodes)
    for node in collectives:
        opened.graph.output.append(_described(model.graph, node, node.input[0]))
        opened.graph.input.append(_described(model.graph, node, node.output[0]))
    return opened, collectives


def put_back(opened: ModelProto, collectives: Sequence[NodeProto], like: ModelProto) -> ModelProto:
    """The model with its collectives again, nodes in an order in which they can run.

    Args:
        like: the model as it was: its inputs, its outputs and its custom domains are kept.
    """
    model = ModelProto()
    model.CopyFrom(opened)
    nodes = _sorted([*opened.graph.node, *collectives])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for now, before in (
        (model.graph.input, like.graph.input),
        (model.graph.output, like.graph.output),
    ):
        kept = {value.name for value in before}
        values = list(now)
        del now[:]
        now.extend(value for value in values if value.name in kept)
        model.graph.value_info.extend(value for value in values if value.name not in kept)
    known = {opset.domain for opset in model.opset_import}
    model.opset_import.extend(o for o in like.opset_import if o.domain not in known)
    return model


def _described(graph: GraphProto, collective: NodeProto, name: str) -> ValueInfoProto:
    """`name` with element type and shape; a sum has those of its terms."""
    ends = (collective.input[0], collective.output[0])
    found = next((value for value in graph.value_info if value.name in ends), None)
    if found is None:
        raise BuildError(f"The graph does not say what type '{name}' has: export it again.")
    value = ValueInfoProto()
    value.CopyFrom(found)
    value.name = name
    return value


def _sorted(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = {
        index: [makers[name] for name in node.input if name in makers]
        for index, node in enumerate(nodes)
    }
    return [nodes[index] for index in TopologicalSorter(needs).static_order()]
