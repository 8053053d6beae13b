"""config.pbtxt: read with Triton's own protobuf, and completed as Triton completes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import DataType
from tritonclient.grpc.model_config_pb2 import ModelConfig as Message
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup as Group

from build_scripts.errors import BuildError
from python_mp.model import config_json, layout
from python_mp.model.config import ModelConfig
from python_mp.model.errors import ConfigError

NAME = "config.pbtxt"
HOSTS = "hosts"
Tensor = tuple[str, str, tuple[int, ...]]


def model_config(
    folder: Path, engine: str, dtype: str, sizes: Mapping[str, int] | None = None
) -> ModelConfig:
    """The model in `folder` as it is served with this engine and dtype, but with all its ranks on
    this host: so it is built and verified.

    Args:
        sizes: `tensor_parallel_size` and `pipeline_parallel_size` in the place of the file's own;
            then it has one replica.

    Raises:
        BuildError: it cannot be read, or served.
    """
    message = read(folder)
    for key in ("engine", "dtype"):
        message.parameters.pop(key, None)
    if sizes:
        message.parameters.pop(HOSTS, None)
        _lay_out(message, sizes)
    made = _parsed(message, folder, engine, dtype)
    if made.parameters.hosts > 1:
        del message.parameters[HOSTS]
        _lay_out(message, {})
        made = _parsed(message, folder, engine, dtype)
    return made


def _parsed(message: Any, folder: Path, engine: str, dtype: str) -> ModelConfig:
    filled = json.dumps(_filled(message, folder.name))
    try:
        made = config_json.parse(filled, str(folder), "1", engine, dtype)
        layout.replicas(made)
    except ConfigError as error:
        raise BuildError(f"{folder / NAME}: {error}") from None
    return made


def contradiction(folder: Path, engine: str, dtype: str) -> str:
    """What config.pbtxt says otherwise; it need not say anything, but may where it is equal."""
    said = read(folder).parameters
    for key, value in {"engine": engine, "dtype": dtype}.items():
        if key in said and said[key].string_value != value:
            return (
                f"{folder / NAME} says {key} {said[key].string_value}, the recipe {value}: take the"
                f" parameter '{key}' out of config.pbtxt"
            )
    return ""


def on_gpus(folder: Path) -> bool:
    """Whether the model's instances are placed on GPUs."""
    return _on_gpus(read(folder))


def _on_gpus(message: Any) -> bool:
    return any(group.gpus or group.kind == Group.KIND_GPU for group in message.instance_group)


def parameter(folder: Path, name: str) -> str | None:
    """What the model's config.pbtxt says; None where it says nothing, or there is none."""
    if not (folder / NAME).is_file():
        return None
    said = read(folder).parameters
    return str(said[name].string_value) if name in said else None


def outputs(folder: Path) -> dict[str, list[Any]]:
    """The data types, such as TYPE_FP32, and dims of the model's outputs, by their names."""
    return {name: [kind, list(dims)] for name, kind, dims in tensors(folder)[1]}


def tensors(folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """The model's inputs and outputs: name, data type such as TYPE_FP32, and dims."""
    message = read(folder)
    first, second = (
        [(each.name, DataType.Name(each.data_type), tuple(each.dims)) for each in found]
        for found in (message.input, message.output)
    )
    return first, second


def queue_delay(folder: Path) -> int:
    """Microseconds for which Triton's batcher waits for more requests."""
    return int(read(folder).dynamic_batching.max_queue_delay_microseconds)


def read(folder: Path) -> Any:
    """Triton's own message. Raises BuildError."""
    path = folder / NAME
    try:
        return text_format.Parse(path.read_text(), Message())
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path} cannot be read: {error}") from None
    except text_format.ParseError as error:
        raise BuildError(f"{path} is not valid: {error}") from None


def _lay_out(message: Any, sizes: Mapping[str, int]) -> None:
    """One replica of that many ranks: on CPUs, or on the first of the GPUs that are named."""
    ranks = 1
    for key in ("tensor_parallel_size", "pipeline_parallel_size"):
        if key in sizes:
            message.parameters[key].string_value = str(sizes[key])
        said = message.parameters[key].string_value if key in message.parameters else "1"
        ranks *= int(said) if said.isdecimal() else 1
    are_gpus = _on_gpus(message)
    gpus = [gpu for group in message.instance_group for gpu in group.gpus]
    del message.instance_group[:]
    for name, first, last in (("lead", 0, 1), ("shard", 1, ranks)):
        if first < last and are_gpus:
            mine = (gpus or list(range(_visible_gpus())))[first:last]
            message.instance_group.add(
                name=name, count=1, kind=Group.KIND_GPU, gpus=mine, passive=name == "shard"
            )
        elif first < last:
            message.instance_group.add(
                name=name, count=last - first, kind=Group.KIND_CPU, passive=name == "shard"
            )


def _filled(message: Any, name: str) -> dict[str, Any]:
    """As Triton fills it in: a name, and a count and name for each instance group. One on GPUs that
    names none has all that are seen."""
    given: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    filled: dict[str, Any] = {"name": name, "max_batch_size": 0, "input": [], "output": []} | given
    groups = filled.setdefault("instance_group", [{}])
    for index, group in enumerate(groups):
        kind = "KIND_GPU" if group.get("gpus") else "KIND_CPU"
        said = {key: value for key, value in group.items() if value != "KIND_AUTO"}
        groups[index] = {"name": f"{filled['name']}_{index}", "count": 1, "kind": kind} | said
        if groups[index]["kind"] == "KIND_GPU" and not group.get("gpus"):
            groups[index]["gpus"] = list(range(_visible_gpus()))
    return filled


def _visible_gpus() -> int:
    import torch  # slow to import, and only such a group asks

    return torch.cuda.device_count()
