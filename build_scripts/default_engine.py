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
GENERATING: Sequence[Engine] = ("torch",)
"""What generates text keeps a cache of its own."""


@dataclass(frozen=True)
class Instead:
    """A faster engine that cannot compute the model: which, why, and the identity of the stage that
    found out, so that it need not be tried again."""

    engine: Engine
    why: str
    stage: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def order(*, on_gpu: bool, generates: bool = False) -> Sequence[Engine]:
    """The engines, best first."""
    if generates:
        return GENERATING
    return ON_GPU if on_gpu else ON_CPU


def choose(engines: Sequence[Engine], dtype: Dtype, instead: Instead | None = None) -> Engine:
    """The first of the engines, behind the one that cannot compute the model.

    Raises:
        BuildError: none has the dtype.
    """
    for engine in engines:
        if dtype in ENGINES[engine] and not (instead and engine == instead.engine):
            return engine
    has = ", ".join(dict.fromkeys(each for engine in engines for each in ENGINES[engine]))
    raise BuildError(f"{' and '.join(engines)} have no dtype {dtype}; there is {has}")


def next_after(
    refusal: Refused, engine: Engine, engines: Sequence[Engine], dtype: Dtype
) -> Instead | None:
    """What is known once a stage has refused `engine`; None where there is no other."""
    instead = Instead(engine, str(refusal), refusal.stage)
    try:
        choose(engines, dtype, instead)
    except BuildError:
        return None
    return instead
