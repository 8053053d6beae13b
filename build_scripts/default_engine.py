"""Which engine computes a model whose recipe names none: the fastest for its device that can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from build_scripts.errors import BuildError, Refused
from build_scripts.recipe import Dtype, Engine
from python_mp.model.parameters import ENGINES

ON_CPU: Sequence[Engine] = ("onnxruntime", "torch")
ON_GPU: Sequence[Engine] = ("torch", "tensorrt")
"""Fastest first, as measured: docs/costs.md. On a GPU ONNX Runtime would use the processor."""


@dataclass(frozen=True)
class Instead:
    """A faster engine that cannot compute the model: which, why, and the identity of the stage that
    found out, so that it need not be tried again."""

    engine: Engine
    why: str
    stage: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def choose(dtype: Dtype, *, on_gpu: bool, instead: Instead | None = None) -> Engine:
    """
    Raises:
        BuildError: none has the dtype.
    """
    engines = ON_GPU if on_gpu else ON_CPU
    for engine in engines:
        if dtype in ENGINES[engine] and not (instead and engine == instead.engine):
            return engine
    has = ", ".join(dict.fromkeys(each for engine in engines for each in ENGINES[engine]))
    where = "GPUs" if on_gpu else "CPUs"
    raise BuildError(f"no engine has dtype {dtype} on {where}; there is {has}")


def next_after(refusal: Refused, engine: Engine, dtype: Dtype, *, on_gpu: bool) -> Instead | None:
    """What is known once a stage has refused `engine`; None where there is no other."""
    instead = Instead(engine, str(refusal), refusal.stage)
    try:
        choose(dtype, on_gpu=on_gpu, instead=instead)
    except BuildError:
        return None
    return instead
