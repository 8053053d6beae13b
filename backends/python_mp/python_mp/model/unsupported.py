"""What Triton allows in config.pbtxt and python_mp does not do: refused, not passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ConfigError

_TENSOR_KEYS = {
    "reshape": "leave it out, and write the shape that the model takes into dims",
    "is_shape_tensor": "leave it out: shapes follow from the tensors",
}
_MODEL_KEYS = {
    "sequence_batching": "requests are computed alone or in packed batches, without any state;"
    " use dynamic_batching",
    "batch_input": "modules get the batch's shape as batch.lengths and batch.cu_seqlens",
    "batch_output": "outputs are split by the requests' own rows",
}
_GROUP_KEYS = {
    "profile": "a plan's profiles are chosen by the batch",
    "secondary_devices": "name each rank's device in an instance of its own",
}
_MOST_DIMS = 30
"""Of numpy's 32, less the batch and the packed dimension."""


def refuse(raw: Mapping[str, Any]) -> None:
    """Raises ConfigError if Triton's `model_config` asks for something that is not done here."""
    for problem in _problems(raw):
        raise ConfigError(problem)


def _problems(raw: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("input", "output"):
        tensors = raw.get(kind, ())
        counts = Counter(item["name"] for item in tensors)
        yield from (f"there are {n} {kind}s '{name}'" for name, n in counts.items() if n > 1)
        for item in tensors:
            yield from _present(f"{kind} '{item['name']}'", item, _TENSOR_KEYS)
            if len(item["dims"]) > _MOST_DIMS:
                yield f"{kind} '{item['name']}' has more than {_MOST_DIMS} dims"
    yield from _present("the model", raw, _MODEL_KEYS)
    for group in raw["instance_group"]:
        yield from _present(f"instance_group '{group['name']}'", group, _GROUP_KEYS)
    if "execution_accelerators" in raw.get("optimization", {}):
        yield "optimization.execution_accelerators is not supported: choose parameter 'engine'"


def _present(where: str, item: Mapping[str, Any], keys: Mapping[str, str]) -> Iterator[str]:
    for key, instead in keys.items():
        given = item.get(key)
        if given or (isinstance(given, dict) and key == "reshape"):
            yield f"{where} has {key}, which is not supported: {instead}"
