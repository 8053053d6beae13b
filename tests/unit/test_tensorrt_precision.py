"""Precision is what a graph has, not what was asked for; what is converted is the same model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from build_scripts.errors import BuildError
from build_scripts.tensorrt import dtypes, precision
from build_scripts.tensorrt.dist_collective import put_back, set_aside
from tests.support.harness import Array

WIDTH, INNER = 32, 64
Feed = dict[str, Array]


def weights(name: str, *shape: int) -> TensorProto:
    random = np.random.default_rng(len(name) + sum(map(ord, name)))
    return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 8, name)


def tensor_parallel() -> ModelProto:
    """A block of one of two ranks: up, gelu, down, sum over ranks, residual, norm, head."""
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="up"),
        helper.make_node("Gelu", ["a"], ["b"], name="gelu"),
        helper.make_node("MatMul", ["b", "down"], ["partial"], name="down"),
        collective("partial", "sum"),
        helper.make_node("Add", ["sum", "x"], ["c"], name="residual"),
        helper.make_node("LayerNormalization", ["c", "scale"], ["d"], name="norm"),
        helper.make_node("MatMul", ["d", "head"], ["y"], name="head"),
    ]
    between = {"a": INNER, "b": INNER, "partial": WIDTH, "sum": WIDTH, "c": WIDTH, "d": WIDTH}
    graph = helper.make_graph(
        nodes,
        "block",
        [value("x", WIDTH)],
        [value("y", 4)],
        [
            weights("up", WIDTH, INNER),
            weights("down", INNER, WIDTH),
            weights("head", WIDTH, 4),
            numpy_helper.from_array(np.ones(WIDTH, np.float32), "scale"),
        ],
        value_info=[value(name, size) for name, size in between.items()],
    )
    return model(graph)


def collective(source: str, target: str) -> NodeProto:
    return helper.make_node(
        "DistCollective", [source], [target], name="reduce", domain="python_mp", nb_rank=2
    )


def value(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", size])


def model(graph: onnx.GraphProto) -> ModelProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("python_mp", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def product(*before: NodeProto, weight: TensorProto, other: str = "x") -> ModelProto:
    """y = `other` x "w", where `before` makes "w" of `weight`."""
    name = "w" if before else weight.name
    nodes = [*before, helper.make_node("MatMul", [other, name], ["y"])]
    return model(helper.make_graph(nodes, "g", [value("x", 4)], [value("y", 4)], [weight]))


def quantised(kind: int, *, weights_only: bool = False) -> ModelProto:
    """x and w through QuantizeLinear and DequantizeLinear of this type."""
    nodes: list[NodeProto] = []
    for name in ("w",) if weights_only else ("x", "w"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"]))
    left = "x" if weights_only else "x_d"
    nodes.append(helper.make_node("MatMul", [left, "w_d"], ["y"]))
    constants = [
        weights("w", 4, 4),
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        helper.make_tensor("z", kind, [], [0]),
    ]
    return model(helper.make_graph(nodes, "g", [value("x", 4)], [value("y", 4)], constants))


def half(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)


def cast(to: int) -> NodeProto:
    return helper.make_node("Cast", ["c"], ["w"], to=to)


W, C = weights("w", 4, 4), weights("c", 4, 4)


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        (product(weight=W), "float32"),
        (product(weight=half(W)), "float16"),
        (product(cast(TensorProto.FLOAT16), weight=C), "float16"),
        (product(cast(TensorProto.BFLOAT16), weight=half(C)), "bfloat16"),
        (product(cast(TensorProto.FLOAT), weight=half(C)), "float32"),
        (product(helper.make_node("Transpose", ["c"], ["w"]), weight=half(C)), "float16"),
        (quantised(TensorProto.INT8), "int8"),
        (quantised(TensorProto.FLOAT8E4M3FN), "fp8"),
        (quantised(TensorProto.INT8, weights_only=True), "float32"),
    ],
)
def test_precision_is_read_from_the_graph(graph: ModelProto, name: str) -> None:
    assert dtypes.shares(graph) == {name: 1.0}
    assert dtypes.require(graph, name) == 1.0
    for other in {"float32", "float16", "bfloat16", "int8", "fp8"} - {name}:
        with pytest.raises(BuildError, match=f"in {other}, but its weights are .* {name} 100%"):
            dtypes.require(graph, other)


def test_shares_are_of_elements() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"]),
        helper.make_node("Gemm", ["x", "small"], ["b"]),
        helper.make_node("MatMul", ["a", "a"], ["c"]),  # Two activations: no weights.
    ]
    constants = [half(weights("large", 4, 12)), weights("small", 4, 4)]
    graph = helper.make_graph(nodes, "g", [value("x", 4)], [value("c", 12)], constants)
    assert dtypes.shares(model(graph)) == {"float16": 0.75, "float32": 0.25}
    with pytest.raises(BuildError, match=r"float32, .* in float16 75%, float32 25%"):
        dtypes.require(model(graph), "float32")


def test_layers_that_were_to_be_kept_do_not_count() -> None:
    graph = product(weight=W)
    graph.graph.node[0].name = "kept"
    whole = quantised(TensorProto.INT8)
    whole.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["z"], name="kept"))
    assert dtypes.shares(whole) == {"int8": 0.5, "float32": 0.5}
    assert dtypes.require(whole, "int8", kept=["kept"]) == 1.0
    with pytest.raises(BuildError, match="multiplied in nothing"):
        dtypes.require(graph, "int8", kept=["kept"])


def named() -> ModelProto:
    """The block with weights named as an exported module's are."""
    whole = tensor_parallel()
    for name in ("up", "down"):
        full = f"module.blocks.0.{name}.weight"
        next(each for each in whole.graph.initializer if each.name == name).name = full
        next(each for each in whole.graph.node if each.name == name).input[1] = full
    return whole


def test_collectives_are_set_aside_and_put_back() -> None:
    whole = tensor_parallel()
    opened, collectives = set_aside(whole)
    onnx.checker.check_model(opened)
    assert [node.op_type for node in collectives] == ["DistCollective"]
    assert [each.name for each in opened.graph.input] == ["x", "sum"]
    assert [each.name for each in opened.graph.output] == ["y", "partial"]
    nodes = list(reversed(opened.graph.node))  # Tools leave them in any order.
    del opened.graph.node[:]
    opened.graph.node.extend(nodes)
    again = put_back(opened, collectives, whole)
    assert {node.name for node in again.graph.node} == {node.name for node in whole.graph.node}
    assert [each.name for each in (*again.graph.input, *again.graph.output)] == ["x", "y"]
    assert {"partial", "sum"} <= {each.name for each in again.graph.value_info}
    known = {"x", *(each.name for each in again.graph.initializer)}
    for node in again.graph.node:
        assert known.issuperset(node.input)
        known.update(node.output)
    assert len(whole.graph.node) == 7


def test_a_collective_of_unknown_type_is_refused() -> None:
    whole = tensor_parallel()
    del whole.graph.value_info[:]
    with pytest.raises(BuildError, match="does not say what type 'partial' has"):
        set_aside(whole)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_conversion_that_leaves_float32_is_an_error(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is one that cannot be made, or not here."""

    def quantize(source: str, *, output_path: str, **_: Any) -> None:
        onnx.save(onnx.load(source), output_path)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator")

    functions = {"convert_to_mixed_precision": lambda source, **_: onnx.load(source)}
    functions["quantize"] = quantize
    parts = [f"modelopt.onnx.{part}" for part in ("autocast", "quantization")]
    for name in ("modelopt", "modelopt.onnx", *parts):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[], **functions))
    with pytest.raises(BuildError, match=f"was to compute in {dtype}, .* float32 100%"):
        precision.convert(tensor_parallel(), dtype, feeds())
    for part in parts:
        monkeypatch.setitem(sys.modules, part, SimpleNamespace(**dict.fromkeys(functions, fails)))
    with pytest.raises(BuildError, match=f"ModelOpt cannot convert the graph to {dtype}: no such"):
        precision.convert(tensor_parallel(), dtype, feeds())
    for part in parts:
        monkeypatch.setitem(sys.modules, part, None)
    with pytest.raises(BuildError, match=r"ModelOpt, which is not usable here .*modelopt\[onnx\]"):
        precision.convert(tensor_parallel(), dtype, feeds())


def feeds() -> list[Feed]:
    """Batches of several sizes, and the sum over two equal ranks."""
    opened, _ = set_aside(tensor_parallel())
    random, run = np.random.default_rng(0), ReferenceEvaluator(opened)
    made: list[Feed] = []
    for tokens in (5, 9, 3):
        x = random.standard_normal((tokens, WIDTH)).astype(np.float32)
        partial = run.run(["partial"], {"x": x, "sum": np.zeros_like(x)})[0]
        made.append({"x": x, "sum": 2 * np.asarray(partial)})
    return made


real_modelopt = pytest.mark.skipif(
    find_spec("modelopt") is None, reason="nvidia-modelopt[onnx] is not installed"
)


@real_modelopt
@pytest.mark.parametrize(
    ("dtype", "least", "error"),
    [("float16", 1.0, 0.005), ("bfloat16", 1.0, 0.05), ("int8", 0.9, 0.1), ("fp8", 0.9, 0.2)],
)
def test_modelopt_converts(dtype: str, least: float, error: float) -> None:
    """For real, on the CPU; what it computes then is close to what it computed before."""
    whole, given = tensor_parallel(), feeds()
    converted = precision.convert(whole, dtype, given)
    assert dtypes.shares(converted)[dtype] >= least
    assert output(converted, given[1]) == pytest.approx(output(whole, given[1]), abs=error)
    assert converted.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


@real_modelopt
@pytest.mark.parametrize("dtype", ["int8"])
def test_modelopt_keeps_layers(dtype: str) -> None:
    converted = precision.convert(named(), dtype, feeds(), ["blocks.*.up"])
    shares = dtypes.shares(converted)
    sizes = {"up": WIDTH * INNER, "down": INNER * WIDTH, "head": 4 * WIDTH}
    assert shares[dtype] <= 1 - sizes["up"] / sum(sizes.values())
    assert dtypes.shares(converted, ["down", "head"]) == {"float16": 1.0}


@real_modelopt
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_inputs_may_differ_in_their_first_dimension(dtype: str) -> None:
    """As tokens and the places they are gathered from: only whole batches make sense."""
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="up"),
        helper.make_node("Gather", ["a", "places"], ["b"], name="gather"),
        helper.make_node("MatMul", ["b", "down"], ["y"], name="down"),
    ]
    places = helper.make_tensor_value_info("places", TensorProto.INT32, ["rows"])
    graph = helper.make_graph(
        nodes,
        "gather",
        [value("x", WIDTH), places],
        [value("y", WIDTH)],
        [weights("up", WIDTH, INNER), weights("down", INNER, WIDTH)],
    )
    random, given = np.random.default_rng(0), list[Feed]()
    for tokens in (6, 4):
        x = random.standard_normal((tokens, WIDTH)).astype(np.float32)
        given.append({"x": x, "places": np.arange(tokens - 1, -1, -2, dtype=np.int32)})
    converted = precision.convert(model(graph), dtype, given)
    assert output(converted, given[0]) == pytest.approx(output(model(graph), given[0]), abs=0.2)


def output(whole: ModelProto, feed: Mapping[str, Array]) -> Array:
    opened, _ = set_aside(whole)
    return np.asarray(ReferenceEvaluator(opened).run(["y"], dict(feed))[0])
