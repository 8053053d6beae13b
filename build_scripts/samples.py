"""Requests to calibrate with and to judge engines by, as clients would send them.

Encoders get real sentences. A user's module gets what `samples(folder)` returns, a function of the
`samples.py` beside its recipe or of the Python module that makes its weights; without one, numbers
from a normal distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import numpy as np

from build_scripts import fetch
from build_scripts.checkpoint import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.sentences import sentences
from python_mp.batch import Array, Batch, read_request
from python_mp.config import ModelConfig


@dataclass(frozen=True)
class Samples:
    """`requests[i]` has every input [1, ...]; `labels[i]` is the right class, if that is known."""

    requests: list[dict[str, Array]]
    labels: list[int] | None = None

    def __post_init__(self) -> None:
        if not self.requests:
            raise BuildError("there are no samples: a build needs some to judge an engine by")


def load(job: Job, count: int) -> Samples:
    """At most `count` of the job's samples, always the same ones."""
    source = fetch.read(job)
    if job.recipe.family == "encoder":
        return Samples(_texts(Checkpoint(source.folder), count))
    maker = _maker(job)
    if maker is None:
        return Samples(_noise(job.config, count))
    made, labels = maker.samples(source.folder)
    return Samples(made[:count], labels[:count] if labels is not None else None)


def packed(config: ModelConfig, requests: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """The requests as one batch, as an engine is given it."""
    read = [read_request(request, config, _NoAnswer()) for request in requests]
    parts = Batch(0, tuple(read)).pack(config)
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _texts(checkpoint: Checkpoint, count: int) -> list[dict[str, Array]]:
    encoded = checkpoint.tokenizer().encode_batch(sentences(count))
    ids = [np.array([each.ids], np.int32) for each in encoded]
    return [{"INPUT_IDS": row, "LENGTHS": np.full((1, 1), row.size, np.int32)} for row in ids]


def _maker(job: Job) -> ModuleType | None:
    path = job.folder / "samples.py"
    if path.exists():
        spec = spec_from_file_location("samples", path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    kind, _, name = job.recipe.source.partition(":")
    return import_module(name) if kind == "make" else None


def _noise(config: ModelConfig, count: int) -> list[dict[str, Array]]:
    random = np.random.default_rng(0)
    shapes = {s.name: (s.dtype, [1, *(8 if d < 0 else d for d in s.dims)]) for s in config.inputs}
    return [
        {
            name: random.standard_normal(shape).astype(dtype)
            for name, (dtype, shape) in shapes.items()
        }
        for _ in range(count)
    ]


class _NoAnswer:
    """Where no client waits."""

    keeps = False

    def send(self, outputs: object) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def is_cancelled(self) -> bool:
        return False
