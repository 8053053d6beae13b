"""Messages over gRPC as KServe v2 knows them, with any field of theirs changed."""

from __future__ import annotations

import copy
import math
from contextlib import suppress

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from tests.support.bad_json import FREE_DIMS, GOOD, change, mostly, spoilt

VALUES = (
    *({"int64_param": value} for value in (0, 1, -1, 2**31, 2**63 - 1, -(2**63))),
    *({"string_param": "x"}, {"bool_param": True}, {"double_param": "NaN"}, {}),
)
CONTENTS = (
    *({"bool_contents": [True]}, {"int_contents": [7, -1]}, {"uint64_contents": [2**64 - 1]}),
    *({"fp32_contents": [0.5] * 256}, {"fp64_contents": ["NaN"]}, {"bytes_contents": ["YWJj"]}),
)
RPCS = (
    *("ModelReady", "ModelMetadata", "ModelConfig", "RepositoryIndex", "ServerMetadata"),
    *("SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "Nope"),
)
INFER = "ModelInfer"


def valid_message(model: str) -> ModelInferRequest:
    blobs = [blob for *_, blob in GOOD[model]]
    message = ModelInferRequest(model_name=model, raw_input_contents=blobs)
    for name, datatype, shape, *_ in GOOD[model]:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def is_message(data: bytes) -> bool:
    """Whether it can be read as a ModelInferRequest."""
    try:
        ModelInferRequest.FromString(data)
    except DecodeError:
        return False
    return True


def crashes(data: bytes) -> bool:
    """Whether a stub is known to die of this ModelInferRequest: a shape whose size in bytes does
    not fit 64 bits, where a dimension may have any size. Not to be defended here, so left out."""
    if not is_message(data):
        return False
    message = ModelInferRequest.FromString(data)
    sizes = [math.prod(abs(dim) or 1 for dim in each.shape) for each in message.inputs]
    free = message.model_name.partition("\0")[0] in FREE_DIMS
    return free and max(sizes, default=0) >= 1 << 59


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A valid ModelInferRequest with some fields changed, and perhaps its bytes spoilt."""
    message = valid_message(draw(st.sampled_from([*GOOD])))
    fields = MessageToDict(message, True, preserving_proto_field_name=True)
    fields["inputs"][0] |= draw(mostly({}, *({"contents": each} for each in CONTENTS)))
    for _ in range(draw(st.integers(0, 6))):
        changed = copy.deepcopy(fields)
        change(draw, changed, VALUES)
        with suppress(ParseError, TypeError):  # it fits no field of that name
            message, fields = ParseDict(changed, ModelInferRequest()), changed
    data = message.SerializeToString()
    data = draw(spoilt(data)) if draw(mostly(False, True)) else data
    return b"" if crashes(data) else data


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, bytes]:
    """(rpc, message); mostly ModelInfer."""
    return draw(mostly(INFER, *RPCS)), draw(messages())


def varint(value: int) -> bytes:
    """As protobuf writes it."""
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def entry(name: bytes, *values: bytes) -> bytes:
    return field(1, name) + b"".join(field(2, value) for value in values)
