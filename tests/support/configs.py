"""Models' configs made in memory."""

import json
from collections.abc import Sequence
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

from python_mp.model.config import ModelConfig
from python_mp.model.config_json import parse
from python_mp.model.manifest import Manifest

INT32, FP32 = "TYPE_INT32", "TYPE_FP32"


def tensor(name: str, dtype: str, *dims: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": dtype, "dims": [str(dim) for dim in dims], **more}


def raw_config(
    name: str,
    inputs: Sequence[dict[str, Any]],
    outputs: Sequence[dict[str, Any]],
    *,
    replicas: int = 1,
    passive: int | None = None,
    max_batch_size: int = 64,
    gpu: int = -1,
    **parameters: Any,
) -> dict[str, Any]:
    """What Triton would hand over for a config.pbtxt with these entries."""
    if passive is None:
        sizes = (parameters.get(f"{axis}_parallel_size", 1) for axis in ("tensor", "pipeline"))
        passive = replicas * (prod(sizes) // parameters.get("hosts", 1) - 1)
    where = {"kind": "KIND_CPU"} if gpu < 0 else {"kind": "KIND_GPU", "gpus": [gpu]}
    groups = [{"name": "lead", **where, "count": replicas, "passive": False}]
    if passive:
        groups.append({"name": "shard", **where, "count": passive, "passive": True})
    return {
        "name": name,
        "max_batch_size": max_batch_size,
        "input": list(inputs),
        "output": list(outputs),
        "instance_group": groups,
        "parameters": {key: {"string_value": str(value)} for key, value in parameters.items()},
    }


def model_config(repository: Path, *tensors: Sequence[dict[str, Any]], **more: Any) -> ModelConfig:
    """Of the model in this folder; see `raw_config`."""
    raw = raw_config(repository.name, *tensors, **more)
    return parse(json.dumps(raw), str(repository), "1")


def module_config(
    folder: Path,
    module: str,
    dims: Sequence[int] = (4,),
    output: Sequence[int] | None = None,
    *,
    ragged: bool = False,
    **more: Any,
) -> ModelConfig:
    """A model of engine torch with this module.py, float32 X [dims] to float32 Y."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "module.py").write_text(module)
    x = tensor("X", FP32, *dims, allow_ragged_batch=ragged)
    y = tensor("Y", FP32, *(dims if output is None else output))
    return model_config(folder, [x], [y], engine="torch", **more)


def echo_config(folder: Path, **more: Any) -> ModelConfig:
    """A model of engine echo: ragged X comes back as Y, and FAULT asks for trouble."""
    inputs = [tensor("X", INT32, -1, allow_ragged_batch=True), tensor("FAULT", INT32, 3)]
    return model_config(folder, inputs, [tensor("Y", INT32, -1)], engine="echo", **more)


def decoder_config(
    folder: Path,
    *,
    context: int = 512,
    vocabulary: int = 1 << 20,
    eos: int = 7,
    version: str = "1",
    **more: Any,
) -> ModelConfig:
    """A model of engine echo_decoder. Ids that it generates are below 65536."""
    decoder_version(folder / version, context, vocabulary, eos)
    return parse(json.dumps(raw_decoder(folder.name, **more)), str(folder), version)


def decoder_version(folder: Path, context: int, vocabulary: int, eos: int) -> None:
    """What its version directory has."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"kind": "generate", "context_length": context, "vocabulary": vocabulary}
    (folder / "task.json").write_text(json.dumps(said | {"eos_token_ids": [eos]}))


def raw_decoder(name: str, **more: Any) -> dict[str, Any]:
    """As `raw_config`."""
    outputs = {"OUTPUT_IDS": INT32, "FINISH_REASON": "TYPE_STRING", "USAGE": INT32}
    raw = raw_config(
        name,
        [tensor("INPUT_IDS", INT32, -1, allow_ragged_batch=True)],
        [tensor(name, dtype, -1) for name, dtype in outputs.items()],
        **{"engine": "echo_decoder", "task": "generate", **more},
    )
    return raw | {"model_transaction_policy": {"decoupled": True}}


def manifest(**values: Any) -> Manifest:
    """Empty but for these values."""
    empty: dict[str, Any] = {each.name: {} for each in fields(Manifest) if each.name != "format"}
    return Manifest(**empty | values)
