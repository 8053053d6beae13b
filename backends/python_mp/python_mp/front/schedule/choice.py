"""Which schedule a model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from ...model.config import ModelConfig
from ...model.errors import PythonMpError
from ...model.request import Request
from ..metrics import Metrics
from ..refusing import Refusals
from .continuous import Continuous
from .one_shot import OneShot
from .policy import Schedule


def schedule(
    config: ModelConfig,
    refusals: Refusals,
    metrics: Metrics,
    put_back: Callable[[list[Request]], None],
    give_up: Callable[[Request, PythonMpError], None],
) -> Schedule:
    """
    Args:
        put_back, give_up: put requests back, or take one out and refuse it; with the replica's
            lock, from any thread that does not hold it.
    """
    if config.parameters.generates:
        # It is given no other requests than streams.
        return cast(Schedule, Continuous(config, refusals, give_up, metrics))
    return OneShot(config, refusals, put_back)
