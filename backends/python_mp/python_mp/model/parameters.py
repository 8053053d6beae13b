"""`parameters` of config.pbtxt: their names, their values, and how much is too much.

Each has an upper limit. Beyond it a number is a slip of the finger, and would not fail but hang: a
memory that nobody has, threads that only wait for each other, a time-out that never comes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16", "int8", "int8_dynamic", "fp8")
ENGINES: Mapping[str, tuple[str, ...]] = {
    "echo": DTYPES,
    "echo_decoder": DTYPES,
    "torch": ("float32", "bfloat16", "float16"),
    "aot_inductor": ("float32", "bfloat16", "float16"),
    "onnxruntime": ("float32", "int8", "int8_dynamic"),
    "tensorrt": ("float32", "float16", "bfloat16", "int8", "fp8"),
}
"""And the dtypes that each of them computes with."""
UNBUILT = ("echo", "echo_decoder", "torch")
"""Those that can do without a build: they run the module as it is, or none."""
TASKS = ("embed", "rerank", "classify", "tokens", "generate")
"""What a checkpoint may be served for; the build reads it, and clients may."""
PLACEMENTS = ("list", "ray", "none")
"""Who starts agents on other hosts: whoever runs them, Ray, or nobody."""
COLLECTIVES = ("auto", "shm", "gloo", "nccl")
FLOAT32_PRODUCTS = ("tf32", "exact")
MOST_RANKS = 64
"""Of a replica: the collectives over shared memory have room for so many."""
_DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Parameters:
    """`parameters` of config.pbtxt, by the names used there."""

    engine: str
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    hosts: int = 1
    placement: str = "list"
    dtype: str = "float32"
    float32_products: str = "tf32"
    collectives: str = "auto"
    lengths: str = ""
    min_sequence_length: int = 1
    task: str = ""
    max_batch_tokens: int = 4096
    max_batch_bytes: int = 64 << 20
    max_running_sequences: int = 256
    kv_cache_blocks: int = 0
    max_queue_requests: int = 4096
    max_queue_bytes: int = 256 << 20
    hang_seconds: int = 10
    drain_seconds: int = 30
    forward_timeout_seconds: int = 0
    threads_per_rank: int = 0
    start_timeout_seconds: int = 120

    @property
    def generates(self) -> bool:
        """Answers come in parts, token by token."""
        return self.task == "generate"

    @property
    def most_nbytes(self) -> int:
        """Of one request, and of its answer."""
        return max(self.max_queue_bytes, self.max_batch_bytes)


def read(given: Mapping[str, str], built: Mapping[str, str]) -> Parameters:
    """Those that are not a module's own.

    Args:
        built: what the version's manifest says instead: `engine` and `dtype`; empty where a version
            was made by hand.

    Raises:
        ConfigError: one is unknown, missing or out of range, or they do not go together.
    """
    known = {key: value for key, value in given.items() if not key.startswith("module.")}
    for key in known:
        if key not in _READERS:
            close = difflib.get_close_matches(key, _READERS, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(_READERS)}"
            raise ConfigError(f"unknown parameter '{key}'{hint}")
    for key, value in built.items():
        if known.setdefault(key, value) != value:
            raise ConfigError(
                f"built with {key} {value}, but config.pbtxt says {known[key]}: take the parameter"
                f" '{key}' out of config.pbtxt; the build needs it in recipe.toml only"
            )
    if "engine" not in known:
        raise ConfigError(
            "parameter 'engine' is missing, which a version without manifest.json needs; one of"
            f" {', '.join(ENGINES)}"
        )
    parameters = Parameters(**{key: _READERS[key](key, value) for key, value in known.items()})
    _check_together(parameters)
    return parameters


def _check_together(parameters: Parameters) -> None:
    engine, dtype = parameters.engine, parameters.dtype
    if dtype not in ENGINES[engine]:
        has = ", ".join(ENGINES[engine])
        others = ", ".join(name for name, dtypes in ENGINES.items() if dtype in dtypes)
        raise ConfigError(
            f"engine '{engine}' has no dtype '{dtype}'; one of {has}. Engines with it: {others}"
        )
    ranks = parameters.tensor_parallel_size * parameters.pipeline_parallel_size
    if ranks > MOST_RANKS:
        raise ConfigError(
            f"tensor_parallel_size x pipeline_parallel_size is {ranks} ranks; a replica has at"
            f" most {MOST_RANKS}"
        )
    _check_hosts(parameters, ranks)


def _check_hosts(parameters: Parameters, ranks: int) -> None:
    hosts, width = parameters.hosts, parameters.tensor_parallel_size
    if hosts == 1:
        return
    if parameters.placement == "none":
        raise ConfigError(
            f"placement 'none' lets no other host in, and 'hosts' is '{hosts}'; placement is 'list'"
            " where agents are started by hand or by a cluster, or 'ray'"
        )
    each = ranks // hosts
    if ranks % hosts or (each % width and width % each):
        raise ConfigError(
            f"parameter 'hosts' is '{hosts}'; each host has equally many of a replica's {ranks}"
            f" ranks, so there are at most {ranks}, and these are whole stages, or an equal part of"
            f" one stage's {width}"
        )
    if parameters.collectives == "shm":
        raise ConfigError("collectives 'shm' is for ranks of one host; with hosts take 'auto'")


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        if value not in allowed:
            raise ConfigError(f"parameter '{key}' is '{value}'; one of {', '.join(allowed)}")
        return value

    return read


def _whole(least: int, most: int) -> Callable[[str, str], int]:
    def read(key: str, value: str) -> int:
        short = len(value) <= len(str(most))  # int() refuses thousands of digits by itself.
        if not (value.isascii() and value.isdecimal() and short and least <= int(value) <= most):
            raise ConfigError(
                f"parameter '{key}' is '{value:.40}'; it must be a whole number, at least {least}"
                f" and at most {most}"
            )
        return int(value)

    return read


_READERS: dict[str, Callable[[str, str], Any]] = {
    "engine": _one_of(*ENGINES),
    "tensor_parallel_size": _whole(1, MOST_RANKS),
    "pipeline_parallel_size": _whole(1, MOST_RANKS),
    "hosts": _whole(1, MOST_RANKS),
    "placement": _one_of(*PLACEMENTS),
    "dtype": _one_of(*DTYPES),
    "float32_products": _one_of(*FLOAT32_PRODUCTS),
    "collectives": _one_of(*COLLECTIVES),
    "lengths": lambda _, value: value,
    "min_sequence_length": _whole(0, 1 << 12),
    "task": _one_of(*TASKS),
    "max_batch_tokens": _whole(1, 1 << 24),
    "max_batch_bytes": _whole(1 << 10, 1 << 36),
    "max_running_sequences": _whole(1, 1 << 16),
    "kv_cache_blocks": _whole(0, 1 << 24),
    "max_queue_requests": _whole(1, 1 << 24),
    "max_queue_bytes": _whole(1 << 10, 1 << 40),
    "hang_seconds": _whole(0, _DAY),
    "drain_seconds": _whole(0, _DAY),
    "forward_timeout_seconds": _whole(0, _DAY),
    "threads_per_rank": _whole(1, 1024),
    "start_timeout_seconds": _whole(1, _DAY),
}
