"""Engines: how a rank computes its part. Few verbs, one module each.

`begin` must validate before it meets its peers: it raises InvalidInput on every rank or on none,
and before the first collective. Then the group is still whole and only the request is refused. So
it is with RequestFailed and what Python raises for values, as long as the rank `is_apart`. Anything
else ends the group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Protocol

from ...model.rank_spec import RankSpec
from ...model.request import Array


class Engine(Protocol):
    """What every engine's `load(spec)` returns."""

    phases: Mapping[str, float]
    """Seconds of each part of the load, by name."""
    blocks: int
    """Of its cache of keys and values, of 16 tokens each; 0 where it does not generate."""
    padded: int
    """Places of the last batch's rectangles that no row was in."""
    depth: int
    """Batches that may be begun before the first one has landed."""

    def begin(self, inputs: Mapping[str, Array]) -> Callable[[], Mapping[str, Array]]:
        """Begins to compute one packed batch.

        Args:
            inputs: the model's inputs, rows end to end; where some are ragged also `cu_seqlens`,
                int32 [sequences + 1].
                They are views of shared memory, valid until the batch has landed.

        Returns:
            What waits for the batch and returns the model's outputs, with the dtypes of
            config.pbtxt; nothing on ranks that do not answer.

        Raises:
            InvalidInput: the tensors cannot be computed.
        """

    def improve(self) -> bool:
        """Does a part of what makes later batches faster, where nothing else is to do; False where
        there is no more of it."""

    def is_apart(self) -> bool:
        """Whether the last `begin` has not met another rank, nor may one wait for it."""

    def waited_ns(self) -> int:
        """Nanoseconds spent waiting for peers since the start."""

    def close(self) -> None: ...


def load(spec: RankSpec) -> Engine:
    """Loads the rank's shard with the engine that config.pbtxt names."""
    module = import_module(f"{__name__}.{spec.config.parameters.engine}")
    engine: Engine = module.load(spec)
    return engine
