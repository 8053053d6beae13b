"""config.pbtxt: read as Triton reads it, and edited in the few places that a recipe decides.

Comments, order and spelling of everything else stay as they are.
"""

import json
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import ModelConfig as Message

from build_scripts import pbtxt
from build_scripts.errors import BuildError
from build_scripts.recipe import Layout, Recipe
from python_mp import config
from python_mp.config import ModelConfig
from python_mp.errors import ConfigError

NAME = "config.pbtxt"


def model_config(folder: Path, recipe: Recipe, version: int = 1) -> ModelConfig:
    """The model in `folder` as its config.pbtxt describes it once edited by the recipe.

    Raises:
        BuildError: it cannot be read, edited or served.
    """
    path = folder / NAME
    text = edited(read(folder), recipe.layout, recipe.engine, recipe.dtype, where=str(path))
    filled = json.dumps(_filled(_parse(text, str(path)), folder.name))
    try:
        return config.parse(filled, str(folder), str(version))
    except ConfigError as error:
        raise BuildError(f"{path}: {error}") from None


def read(folder: Path) -> str:
    try:
        return (folder / NAME).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{folder / NAME} cannot be read: {error}") from None


def edited(text: str, layout: Layout, engine: str, dtype: str, *, where: str = NAME) -> str:
    """`text` with this engine, dtype and layout, and with instances to match.

    Raises:
        BuildError: instances cannot be derived; the message has the lines to write.
    """
    before = _parse(text, where)
    wanted = {
        "engine": engine,
        "dtype": dtype,
        "tensor_parallel_size": str(layout.tensor_parallel_size),
        "pipeline_parallel_size": str(layout.pipeline_parallel_size),
    }
    for key, value in wanted.items():
        said = before.parameters[key].string_value if key in before.parameters else ""
        if value != (said or DEFAULTS.get(key)):
            text = pbtxt.with_parameter(text, key, value, where)
    text = _with_instances(text, layout, where)
    try:
        safe = _untouched(before, _parse(text, where), wanted)
    except BuildError:
        safe = False
    if not safe:
        raise BuildError(
            f"{where} cannot be edited safely; write into it:\n{_lines(wanted, layout)}"
        )
    return text


DEFAULTS = {"dtype": "float32", "tensor_parallel_size": "1", "pipeline_parallel_size": "1"}


def _parse(text: str, where: str) -> Any:
    try:
        return text_format.Parse(text, Message())
    except text_format.ParseError as error:
        raise BuildError(f"{where} is not valid: {error}") from None


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


def _untouched(before: Any, after: Any, parameters: dict[str, str]) -> bool:
    """Whether nothing but those parameters and the numbers of instances differ."""
    stripped = []
    for message in (before, after):
        rest = Message()
        rest.CopyFrom(message)
        for key in parameters:
            rest.parameters.pop(key, None)
        for group in rest.instance_group:
            group.count = 1
        stripped.append(rest)
    for passive in (True, False):
        groups = [[g for g in rest.instance_group if g.passive == passive] for rest in stripped]
        if all(groups) and groups[0] != groups[1]:
            return False
    for rest in stripped:
        rest.ClearField("instance_group")
    return bool(stripped[0] == stripped[1])


def _with_instances(text: str, layout: Layout, where: str) -> str:
    if not list(pbtxt.entries(text)):  # Triton makes one instance of it
        alone = layout.replicas * layout.world_size == 1
        return text if alone else f"{text.rstrip()}\n{_instances(layout)}\n"
    for passive in (True, False):
        count = layout.replicas * (layout.world_size - 1 if passive else 1)
        entries = list(pbtxt.entries(text))
        mine = [entry for entry in entries if entry.group.passive == passive]
        if sum(entry.instances for entry in mine) == count:
            continue
        if len(mine) > 1 or any(entry.group.gpus for entry in entries):
            raise BuildError(
                f"{where} has other instances than {layout.replicas} active and"
                f" {layout.replicas * (layout.world_size - 1)} passive ones, and cannot be edited"
                f" safely; write into it, with kind and gpus as you need them:\n"
                f"{_instances(layout)}"
            )
        if not mine:
            text = pbtxt.added(text, entries[-1], count, passive)
        elif count:
            text = pbtxt.counted(text, mine[0], count)
        else:
            text = pbtxt.removed(text, mine[0])
    return text


def _instances(layout: Layout) -> str:
    groups = [pbtxt.group_text(layout.replicas, "", False)]
    if layout.world_size > 1:
        groups.append(pbtxt.group_text(layout.replicas * (layout.world_size - 1), "", True))
    return f"instance_group [ {', '.join(groups)} ]"


def _lines(parameters: dict[str, str], layout: Layout) -> str:
    lines = [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    ]
    return "\n".join([_instances(layout), *lines])
