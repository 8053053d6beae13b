"""Precision is what a graph has, not what was asked for; what is converted is the same model."""

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from build_scripts import workers
from build_scripts.errors import BuildError
from build_scripts.tensorrt import dtypes, precision
from build_scripts.tensorrt.dist_collective import put_back, set_aside
from tests.support.graphs import graph
from tests.support.replicas import Array

WIDTH, INNER = 32, 64
Feed = dict[str, Array]
Convert = Callable[..., ModelProto]

BLOCK = """block (float[t, 32] x, int32[rows] places) => (float[rows, 4] y)
<float[t, 64] a, float[t, 64] b, float[t, 32] partial, float[t, 32] sum, float[t, 32] c> {
  [up] a = MatMul (x, up)
  [gelu] b = Gelu (a)
  [down] partial = MatMul (b, down)
  [reduce] sum = python_mp.DistCollective <nb_rank: int = 2> (partial)
  [residual] c = Add (sum, x)
  [norm] d = LayerNormalization (c, scale)
  [gather] e = Gather (d, places)
  [head] y = MatMul (e, head)
}"""
PRODUCT = "g (float[t, 4] x) => (float[t, 4] y) {{ {before} [product] y = MatMul ({x}, {w}) }}"
QUANTISED = """{name}_q = QuantizeLinear ({name}, s, z)
{name}_d = DequantizeLinear ({name}_q, s, z)"""


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 8


def tensor_parallel() -> ModelProto:
    """A block of one of two ranks."""
    given = {"up": weight(WIDTH, INNER), "down": weight(INNER, WIDTH, seed=1)}
    scale = np.ones(WIDTH, np.float32)
    return graph(BLOCK, **given, head=weight(WIDTH, 4, seed=2), scale=scale)


def product(before: str = "", *, half: bool = False) -> ModelProto:
    """y = x times "c", or times "w", which `before` makes of "c"."""
    text = PRODUCT.format(before=before, x="x", w="w" if before else "c")
    return graph(text, c=weight(4, 4).astype(np.float16 if half else np.float32))


def quantised(kind: int, *, weights_only: bool = False) -> ModelProto:
    """x and w through QuantizeLinear and DequantizeLinear of this type."""
    names = ("w",) if weights_only else ("x", "w")
    before = "\n".join(QUANTISED.format(name=name) for name in names)
    text = PRODUCT.format(before=before, x="x" if weights_only else "x_d", w="w_d")
    made = graph(text, w=weight(4, 4), s=np.array(0.1, np.float32))
    made.graph.initializer.append(helper.make_tensor("z", kind, [], [0]))
    return made


def test_precision_is_read_from_the_graph() -> None:
    for model, name in (
        (product(), "float32"),
        (product(half=True), "float16"),
        (product("w = Cast <to: int = 10> (c)"), "float16"),
        (product("w = Cast <to: int = 16> (c)", half=True), "bfloat16"),
        (product("w = Cast <to: int = 1> (c)", half=True), "float32"),
        (product("w = Transpose (c)", half=True), "float16"),
        (quantised(TensorProto.INT8), "int8"),
        (quantised(TensorProto.FLOAT8E4M3FN), "fp8"),
        (quantised(TensorProto.INT8, weights_only=True), "float32"),
    ):
        assert dtypes.shares(model) == {name: 1.0}
        assert dtypes.require(model, name) == 1.0
        for other in {"float32", "float16", "bfloat16", "int8", "fp8"} - {name}:
            with pytest.raises(BuildError, match=f"{other}, but its weights are .* {name} 100%"):
                dtypes.require(model, other)


def test_shares_are_of_elements() -> None:
    text = """g (float[t, 4] x) => (float[t, 12] c) {
      a = MatMul (x, large)
      b = Gemm (x, small)
      c = MatMul (a, a)
    }"""  # The last is of two activations: no weights.
    model = graph(text, large=weight(4, 12).astype(np.float16), small=weight(4, 4))
    assert dtypes.shares(model) == {"float16": 0.75, "float32": 0.25}
    with pytest.raises(BuildError, match=r"float32, .* in float16 75%, float32 25%"):
        dtypes.require(model, "float32")


def test_layers_that_were_to_be_kept_do_not_count() -> None:
    whole = quantised(TensorProto.INT8)
    whole.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["z"], name="kept"))
    assert dtypes.shares(whole) == {"int8": 0.5, "float32": 0.5}
    assert dtypes.require(whole, "int8", kept=["kept"]) == 1.0
    with pytest.raises(BuildError, match="multiplied in nothing"):
        dtypes.require(whole, "int8", kept=["kept", "product"])


def test_collectives_are_set_aside_and_put_back() -> None:
    whole = tensor_parallel()
    opened, collectives = set_aside(whole)
    onnx.checker.check_model(opened)
    assert [each.name for each in opened.graph.input] == ["x", "places", "sum"]
    assert [each.name for each in opened.graph.output] == ["y", "partial"]
    nodes = list(reversed(opened.graph.node))  # Tools reorder, and forget types.
    del opened.graph.node[:], opened.graph.value_info[:]
    opened.graph.node.extend(nodes)
    again = put_back(opened, collectives, whole)
    assert {node.name for node in again.graph.node} == {node.name for node in whole.graph.node}
    ends = [each.name for each in (*again.graph.input, *again.graph.output)]
    assert ends == ["x", "places", "y"]
    assert {"partial", "sum"} <= {each.name for each in again.graph.value_info}
    onnx.checker.check_model(again)  # in an order that can be run


def test_a_collective_of_unknown_type_is_refused() -> None:
    whole = tensor_parallel()
    del whole.graph.value_info[:]
    with pytest.raises(BuildError, match="does not say what type 'partial' has"):
        set_aside(whole)


def test_what_leaves_float32_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is one that cannot be made, or not here."""

    def put(part: Any) -> None:
        for name in ("modelopt", "modelopt.onnx"):
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
        monkeypatch.setitem(sys.modules, "modelopt.onnx.autocast", part)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator")

    for part, said in (
        (SimpleNamespace(convert_to_mixed_precision=unchanged), "in float16, .* float32 100%"),
        (SimpleNamespace(convert_to_mixed_precision=fails), "cannot convert .* float16: no such"),
        (None, r"ModelOpt, which is not usable here .*modelopt\[onnx\]"),
    ):
        put(part)
        with pytest.raises(BuildError, match=said):
            precision.convert(tensor_parallel(), "float16", feeds())


def unchanged(source: str, **_: Any) -> ModelProto:
    return onnx.load(source)


def feeds() -> list[Feed]:
    """Batches of several sizes, and the sum over two equal ranks. Inputs differ in their first
    dimension, as tokens and the places they are gathered from: only whole batches make sense."""
    opened, _ = set_aside(tensor_parallel())
    random, run = np.random.default_rng(0), ReferenceEvaluator(opened)
    made: list[Feed] = []
    for tokens in (5, 9, 3):
        x = random.standard_normal((tokens, WIDTH)).astype(np.float32)
        feed: Feed = {"x": x, "places": np.arange(tokens - 1, -1, -2, dtype=np.int32)}
        partial = run.run(["partial"], feed | {"sum": np.zeros_like(x)})[0]
        made.append(feed | {"sum": 2 * np.asarray(partial)})
    return made


real_modelopt = pytest.mark.skipif(
    find_spec("modelopt") is None, reason="nvidia-modelopt[onnx] is not installed"
)


@pytest.fixture(scope="module")
def convert() -> Iterator[Convert]:
    """ModelOpt in a process of its own, as in a build: it patches ONNX Runtime."""
    with workers.pool(1) as pool:
        yield lambda *given: pool.submit(precision.convert, *given).result()


@real_modelopt
@pytest.mark.parametrize(
    ("dtype", "least", "error"),
    [("float16", 1.0, 0.005), ("bfloat16", 1.0, 0.05), ("int8", 0.9, 0.1), ("fp8", 0.9, 0.2)],
)
def test_modelopt_converts(dtype: str, least: float, error: float, convert: Convert) -> None:
    """For real, on the CPU; what it computes then is close to what it computed before."""
    whole, given = tensor_parallel(), feeds()
    converted = convert(whole, dtype, given)
    assert dtypes.shares(converted)[dtype] >= least
    assert output(converted, given[1]) == pytest.approx(output(whole, given[1]), abs=error)
    assert converted.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


@real_modelopt
def test_modelopt_keeps_layers(convert: Convert) -> None:
    named = tensor_parallel()
    for name in ("up", "down"):  # as an exported module's
        full = f"module.blocks.0.{name}.weight"
        next(each for each in named.graph.initializer if each.name == name).name = full
        next(each for each in named.graph.node if each.name == name).input[1] = full
    converted = convert(named, "int8", feeds(), ["blocks.*.up"])
    assert dtypes.shares(converted)["int8"] <= 0.52  # "down" and "head"
    assert dtypes.shares(converted, ["down", "head"]) == {"float16": 1.0}


def output(whole: ModelProto, feed: Mapping[str, Array]) -> Array:
    opened, _ = set_aside(whole)
    return np.asarray(ReferenceEvaluator(opened).run(["y"], dict(feed))[0])
