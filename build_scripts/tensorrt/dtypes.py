"""In which precision a graph really multiplies. TensorRT takes the types that the graph has: where
a conversion left float32, nothing else would say so.
"""

from collections import Counter
from collections.abc import Container
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from build_scripts.errors import BuildError

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
PASSING = ("Transpose", "Identity", "Reshape", "Unsqueeze", "Squeeze")
FP8_OPERATORS = ("TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear")
QUANTIZE = ("QuantizeLinear", "TRT_FP8QuantizeLinear")
DEQUANTIZE = ("DequantizeLinear", "TRT_FP8DequantizeLinear")
CHANGING = ("Cast", *QUANTIZE, *DEQUANTIZE)
AT_LEAST = 0.5
NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}


def require(model: ModelProto, dtype: str, kept: Container[str] = ()) -> float:
    """The share of the weights that is multiplied in `dtype`, by elements.

    Args:
        kept: names of nodes that do not count, since they were not to be converted.

    Raises:
        BuildError: it is less than AT_LEAST.
    """
    found = shares(model, kept)
    if found.get(dtype, 0) < AT_LEAST:
        rest = ", ".join(f"{name} {share:.0%}" for name, share in sorted(found.items()))
        raise BuildError(
            f"The graph was to compute in {dtype}, but its weights are multiplied in"
            f" {rest or 'nothing'}: choose a dtype that the model can be converted to."
        )
    return found[dtype]


def shares(model: ModelProto, without: Container[str] = ()) -> dict[str, float]:
    """Which share of the weights, by elements, is multiplied in which precision.

    A product counts as int8 or fp8 if both of its factors were quantised to it; otherwise as what
    its weights are turned into before it.
    """
    graph = _Graph(model.graph)
    elements = Counter[str]()
    for node in model.graph.node:
        if node.op_type in PRODUCTS and node.name not in without:
            for weight, other in (node.input[:2], node.input[1::-1]):
                if found := graph.constant(weight):
                    elements[graph.precision(weight, other)] += prod(found.dims)
                    break
    return {name: count / elements.total() for name, count in elements.items()}


class _Graph:
    """Where a graph's values come from."""

    def __init__(self, graph: GraphProto) -> None:
        self._initializers: dict[str, TensorProto] = {each.name: each for each in graph.initializer}
        self._makers: dict[str, NodeProto] = {
            name: node for node in graph.node for name in node.output
        }

    def constant(self, name: str) -> TensorProto | None:
        """The weights behind `name`, through casts and quantisation; None if it is computed."""
        node, name = self._maker(name, *PASSING, *CHANGING)
        if node and node.op_type == "Constant":
            value: TensorProto = node.attribute[0].t
            return value
        return self._initializers.get(name)

    def precision(self, weight: str, other: str) -> str:
        """In which a product of these two is computed."""
        quantised = self._quantised(weight)
        kind = quantised if quantised == self._quantised(other) else None
        return NAMES.get(kind or self._float_type(weight), "something else")

    def _quantised(self, name: str) -> int | None:
        """The type that `name` was dequantised from; None if it was not."""
        node, _ = self._maker(name, *PASSING)
        if node is None or node.op_type not in DEQUANTIZE:
            return None
        maker = self._makers.get(node.input[0])
        if maker and maker.op_type in FP8_OPERATORS:
            return int(TensorProto.FLOAT8E4M3FN)
        if maker is None and node.input[0] in self._initializers:
            return self._initializers[node.input[0]].data_type
        zero_point = self.constant(node.input[2]) if len(node.input) > 2 else None
        if zero_point:
            return zero_point.data_type
        return (
            next((a.i for a in maker.attribute if a.name == "output_dtype"), None)
            if maker
            else None
        )

    def _float_type(self, name: str) -> int:
        """Of what is behind casts, and of a dequantised value, which has the type of its scale."""
        node, name = self._maker(name, *PASSING)
        if node and node.op_type == "Cast":
            return int(next(each.i for each in node.attribute if each.name == "to"))
        if node and node.op_type in DEQUANTIZE:
            return self._float_type(node.input[1])
        found = self.constant(name)
        return found.data_type if found else int(TensorProto.UNDEFINED)

    def _maker(self, name: str, *through: str) -> tuple[NodeProto | None, str]:
        """The node that made `name`, and its output's name, looking through nodes of some kinds."""
        while (node := self._makers.get(name)) and node.op_type in through:
            name = node.input[0]
        return node, name
