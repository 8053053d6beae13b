"""What the watcher knows, as the pages of its health server."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.watch.model_state import Model, Trouble
from server.watch.state import State

DEAD_SECONDS = 60.0  # without service; then restarting is no help, and whoever watches us may try
JSON = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the watcher knows at one moment.

    Attributes:
        models: all that are to be served; None where nothing is known of single models.
        is_heard: whether tritonserver answers.
        is_draining: whether the watcher was told to stop.
        trouble: why tritonserver ended, or cannot be started.
        pid: of tritonserver; None while it does not live.
        version: of tritonserver.
        restarts: of tritonserver after it had died.
        since: when it came into its state; seconds of the monotonic clock, as the next one.
        served: when it served last.
        errors: of the watcher's loops, by name.
    """

    state: State
    models: Mapping[str, Model] | None
    is_heard: bool
    is_draining: bool
    trouble: str
    pid: int | None
    version: str
    restarts: int
    since: float
    served: float
    errors: Mapping[str, JSON]


def of(facts: Facts) -> JSON:
    """The arguments of `Health.tell`."""
    models = dict(sorted((facts.models or {}).items()))
    troubles = {name: model.why_not(models) for name, model in models.items()}
    trouble = why_not_ready(facts)
    if trouble is None and facts.models is not None:
        trouble = why_models_are_not(models, troubles)
    return {
        "live": is_live(facts),
        "ready": {
            "ready": trouble is None,
            "reason": trouble.public if trouble else "",
            "models": {name: _summary(model, troubles[name]) for name, model in models.items()},
        },
        "status": {
            "ready": trouble is None,
            "reason": trouble.full if trouble else "",
            "draining": facts.is_draining,
            "watcher": os.getpid(),
            "server": {
                "pid": facts.pid,
                "version": facts.version,
                "restarts": facts.restarts,
                "since": time.time() - (time.monotonic() - facts.since),
            },
            "errors": facts.errors,
            "models": {name: _detail(model, troubles[name]) for name, model in models.items()},
        },
    }


def why_not_ready(facts: Facts) -> Trouble | None:
    """What keeps all of it from being ready, whatever the models are; None if nothing does."""
    if facts.is_draining:
        return Trouble("it is draining", "it is draining")
    match facts.state:
        case State.STARTING:
            public = "it is starting"
        case State.WAITING:
            public = "tritonserver ended"
        case _ if facts.models is not None and not facts.is_heard:
            return Trouble("tritonserver does not answer", "tritonserver does not answer")
        case _:
            return None
    return Trouble(public, facts.trouble or public)


def why_models_are_not(
    models: Mapping[str, Model], troubles: Mapping[str, Trouble | None]
) -> Trouble | None:
    """What the models have against it; None where those that serve are worth asking.

    A model that never served takes nothing away from the others: were it to count, one broken
    folder in a shared repository would make every server unready.
    """
    if not models:
        return Trouble("no model is loaded", "no model is loaded")
    none_serves = all(troubles.values())
    counted = {
        f"{name}: ": trouble
        for name, trouble in troubles.items()
        if trouble and (none_serves or models[name].has_served)
    }
    if not counted:
        return None
    return Trouble(
        "; ".join(name + trouble.public for name, trouble in counted.items()),
        "; ".join(name + trouble.full for name, trouble in counted.items()),
    )


def is_live(facts: Facts) -> bool:
    """False once tritonserver has been away for too long. A first start may take its time."""
    away = time.monotonic() - facts.served
    return not facts.restarts or away < DEAD_SECONDS


def _summary(model: Model, trouble: Trouble | None) -> JSON:
    return {
        "ready": trouble is None,
        "reason": trouble.public if trouble else "",
        "replicas": [each["state"] for each in model.replicas],
    }


def _detail(model: Model, trouble: Trouble | None) -> JSON:
    return {
        "ready": trouble is None,
        "unbuilt": model.is_unbuilt,
        "reason": trouble.full if trouble else model.reason,
        "backend": model.backend,
        "steps": model.steps(),
        "versions": model.versions,
        "restarts": model.restarts,
        "reloads": model.reloads,
        "stubs": [{"instance": stub.instance, "pid": stub.pid} for stub in model.stubs],
        "replicas": model.replicas,
    }
