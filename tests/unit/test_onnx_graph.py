"""Graphs cut at their collectives compute what the whole does, and can be joined again."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper
from onnxruntime import InferenceSession

from build_scripts import onnx_file, quantise
from build_scripts.errors import BuildError
from python_mp.rank.engines.onnx_graph import COLLECTIVE, DOMAIN, Segment, cut, join
from tests.support.graphs import graph

Array = np.ndarray[Any, Any]
ROWS = 5


def product(collectives: int) -> ModelProto:
    """x [n, 4] -> y: so many times "matrix product, all-reduce, add what was there before"."""
    random, nodes, types, weights, x = np.random.default_rng(0), "", [], {}, "x"
    for n in range(collectives):
        weights[f"w{n}"] = random.standard_normal((4, 4)).astype(np.float32)
        nodes += f"part{n} = MatMul ({x}, w{n}) sum{n} = {DOMAIN}.{COLLECTIVE} (part{n})"
        nodes += f" x{n} = Add (sum{n}, {x}) "
        types += [f"float[n, 4] {name}{n}" for name in ("part", "sum", "x")]
        x = f"x{n}"
    between = f"<{', '.join(types)}>" if types else ""
    ends = "ranks (float[n, 4] x) => (float[n, 4] y)"
    return graph(f"{ends} {between} {{ {nodes} y = Relu ({x}) }}", **weights)


def run(segments: Sequence[Segment], x: Array, ranks: int = 2) -> Array:
    """As so many ranks with equal weights would."""
    values = {"x": x}
    for segment in segments:
        session = InferenceSession(segment.model.SerializeToString())
        feed = {name: values[name] for name in segment.inputs}
        values.update(zip(segment.outputs, session.run(segment.outputs, feed), strict=True))
        if segment.collective:
            before, after = segment.collective.input[0], segment.collective.output[0]
            values[after] = ranks * values[before]
    return values["y"]


def expected(model: ModelProto, x: Array, ranks: int = 2) -> Array:
    for weight in model.graph.initializer:
        x = ranks * (x @ numpy_helper.to_array(weight)) + x
    return np.maximum(x, 0)


@pytest.mark.parametrize("collectives", [0, 3])
def test_the_segments_compute_the_whole(collectives: int) -> None:
    model = product(collectives)
    segments = cut(model)
    assert len(segments) == collectives + 1
    x = np.random.default_rng(1).standard_normal((ROWS, 4)).astype(np.float32)
    np.testing.assert_allclose(run(segments, x), expected(model, x), rtol=1e-4, atol=1e-4)


def test_joined_segments_are_the_graph_again() -> None:
    """Also when two of them use the same name inside."""
    model = product(2)
    segments = cut(model)
    for segment in segments:
        segment.model.graph.node.insert(
            0, helper.make_node("Identity", [segment.inputs[0]], ["inside"])
        )
    joined = join(segments, model)
    names = [name for node in joined.graph.node for name in node.output]
    assert len(names) == len(set(names))
    x = np.random.default_rng(2).standard_normal((ROWS, 4)).astype(np.float32)
    np.testing.assert_allclose(run(cut(joined), x), expected(model, x), rtol=1e-4, atol=1e-4)


def test_a_layer_to_keep_must_be_there(tmp_path: Path) -> None:
    weights = {f"module.blocks.{n}.down.weight": np.zeros((4, 4), np.float32) for n in range(2)}
    onnx_file.save(
        graph("g (float[n, 4] x) => (float[n, 4] x) {}", **weights), file := tmp_path / "g"
    )

    def kept(*patterns: str) -> Any:
        calibration = SimpleNamespace(keep_float=patterns)
        return SimpleNamespace(model="m", recipe=SimpleNamespace(calibration=calibration))

    quantise.check_kept(kept("blocks.*.down", "down"), [file])
    with pytest.raises(
        BuildError, match=r"'blocks.\*.up', which is no layer's name; .*0.down.weight"
    ):
        quantise.check_kept(kept("blocks.*.up"), [file])
