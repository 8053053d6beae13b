"""Messages over gRPC as KServe v2 knows them, with any field of theirs changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import InferParameter, ModelInferRequest

from tests.support.bad_json import BINARY, FREE_DIMS, PARAMETERS

INTEGERS = (0, 1, -1, 2, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1, -(2**63))
SMALL = (0, 1, -1, 2**31 - 1, -(2**31))
TEXTS = ("", "x", "nope", "1", "-1", "99", "../..", "\0", "é" * 20, "x" * 3000, "FP16", "BF16")
NAMES = ("embed", "embed_encoder", "ranker", "classify", "TEXT", "INPUT_IDS", "FP32", "INT64")
VALUES: dict[int, Sequence[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: SMALL,
    FieldDescriptor.CPPTYPE_INT64: INTEGERS,
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2**62, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: (0.0, -1.5, math.nan, math.inf),
    FieldDescriptor.CPPTYPE_FLOAT: (0.0, -1.5, math.nan, math.inf),
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
}
BYTES = (b"", b"x", bytes(4), bytes(1024), b"\xff" * 4, b"\xff\xff\xff\x7fab", bytes(70_000))
RPCS = (
    *("ModelReady", "ModelMetadata", "ModelConfig", "RepositoryIndex", "ServerMetadata"),
    *("SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "Nope"),
)
INFER = "ModelInfer"


def valid_message(index: int) -> ModelInferRequest:
    model, specs, blobs = BINARY[index]
    message = ModelInferRequest(model_name=model, raw_input_contents=blobs)
    for name, datatype, shape in specs:
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
    """A valid ModelInferRequest with up to three fields changed, and perhaps its bytes spoilt."""
    message = valid_message(draw(st.integers(0, len(BINARY) - 1)))
    for _ in range(draw(st.integers(0, 3))):
        _change(draw, message)
    data = message.SerializeToString()
    kind = draw(st.sampled_from([*[""] * 9, "cut", "flip", "more"]))
    at = draw(st.integers(0, max(len(data) - 1, 0))) if kind in ("cut", "flip") and data else 0
    if kind == "cut":
        data = data[:at]
    elif kind == "flip" and data:
        data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    elif kind == "more":
        data += draw(st.binary(min_size=1, max_size=20))
    return b"" if crashes(data) else data


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, bytes]:
    """(rpc, message); mostly ModelInfer."""
    return draw(st.sampled_from([*[INFER] * 40, *RPCS])), draw(messages())


def _change(draw: st.DrawFn, message: Message) -> None:
    """Changes one field of the message or of one inside it."""
    inside, field = draw(st.sampled_from(list(_fields(message))))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = draw(st.sampled_from(PARAMETERS)), getattr(inside, field.name)
        value[key].CopyFrom(draw(_parameters()))
    elif field.label == FieldDescriptor.LABEL_REPEATED:
        _change_list(draw, getattr(inside, field.name), field)
    elif field.message_type is not None:
        getattr(inside, field.name).SetInParent()
    else:
        setattr(inside, field.name, draw(_scalars(field)))


def _change_list(draw: st.DrawFn, values: Any, field: FieldDescriptor) -> None:
    """One more, one less, one twice, or another one in its place."""
    kind = draw(st.sampled_from(["more", "less", "twice", "other"]))
    at = draw(st.integers(0, len(values) - 1)) if len(values) else 0
    if kind == "less" and len(values):
        del values[at]
    elif kind == "twice" and len(values):
        values.append(values[at])
    elif field.message_type is not None:
        values.add()
    elif kind == "other" and len(values):
        values[at] = draw(_scalars(field))
    else:
        values.append(draw(_scalars(field)))


def _fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field of the message and of all messages inside it, set or not."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        inside = getattr(message, field.name)
        repeated = field.label == FieldDescriptor.LABEL_REPEATED
        for each in inside if repeated else [inside]:
            yield from _fields(each)


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(BYTES) | st.binary(max_size=12)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.sampled_from(TEXTS + NAMES)
    return st.sampled_from(VALUES[field.cpp_type])


def _parameters() -> st.SearchStrategy[InferParameter]:
    whole = st.sampled_from(INTEGERS).map(lambda value: InferParameter(int64_param=value))
    text = st.sampled_from(TEXTS).map(lambda value: InferParameter(string_param=value))
    truth = st.booleans().map(lambda value: InferParameter(bool_param=value))
    real = st.floats().map(lambda value: InferParameter(double_param=value))
    return whole | text | truth | real | st.just(InferParameter())


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
