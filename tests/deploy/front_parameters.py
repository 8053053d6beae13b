"""Requests with parameters of every name that Triton knows, wherever it takes some."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import InferParameter, ModelInferRequest

from tests.support.bad_json import PARAMETERS, VALUES

DATA: dict[str, tuple[Any, bytes]] = {"BYTES": ("a", b"\1\0\0\0a"), "FP32": (1, bytes(4))}
"""The one element of an input, in JSON and as raw contents."""
Values = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """The parameters of a request for OUT of a model that has one input, IN."""

    request: Values
    input: Values
    outputs: list[Values]

    def body(self, datatype: str = "FP32") -> bytes:
        """As JSON."""
        tensor = {"name": "IN", "datatype": datatype, "shape": [1, 1], "data": [DATA[datatype][0]]}
        outputs = [{"name": "OUT", "parameters": each} for each in self.outputs]
        inputs = [tensor | {"parameters": self.input}]
        whole = {"inputs": inputs, "outputs": outputs, "parameters": self.request}
        return json.dumps(whole).encode()

    def message(self, model: str = "m", datatype: str = "FP32") -> bytes:
        """As a ModelInferRequest."""
        whole = ModelInferRequest(model_name=model, raw_input_contents=[DATA[datatype][1]])
        tensor = whole.inputs.add(name="IN", datatype=datatype, shape=[1, 1])
        outputs = [(whole.outputs.add(name="OUT"), each) for each in self.outputs]
        for holder, values in ((whole, self.request), (tensor, self.input), *outputs):
            for name, value in values.items():
                holder.parameters[name].CopyFrom(_parameter(value))
        return bytes(whole.SerializeToString())


def _parameter(value: Any) -> InferParameter:
    """In the field that fits it; without a value where none does."""
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        large = value >= 1 << 63
        return InferParameter(uint64_param=value) if large else InferParameter(int64_param=value)
    fields = {str: "string_param", float: "double_param"}
    return InferParameter(**{fields[type(value)]: value} if type(value) in fields else {})


_VALUES: st.SearchStrategy[Values] = st.dictionaries(
    st.sampled_from(PARAMETERS), st.sampled_from(VALUES), max_size=3
)
asked = st.builds(Asked, _VALUES, _VALUES, st.lists(_VALUES, max_size=2))
