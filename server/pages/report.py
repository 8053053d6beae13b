"""What the watcher knows, as the pages of its health server."""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from server.watch.model_state import Model, Trouble

if TYPE_CHECKING:
    from server.watch.watcher import Watcher

DEAD_SECONDS = 60.0  # without service; then restarting is no help, and whoever watches us may try
JSON = dict[str, Any]


def of(watcher: "Watcher") -> JSON:
    """The arguments of `Health.tell`."""
    models = (
        dict(sorted(watcher.reconciler.models.items())) if watcher.reconciler is not None else {}
    )
    troubles = {name: model.why_not(models) for name, model in models.items()}
    trouble = why_not_ready(watcher)
    if trouble is None and watcher.reconciler is not None:
        trouble = why_models_are_not(models, troubles)
    return {
        "live": is_live(watcher),
        "ready": {
            "ready": trouble is None,
            "reason": trouble.public if trouble else "",
            "models": {name: _summary(model, troubles[name]) for name, model in models.items()},
        },
        "status": {
            "ready": trouble is None,
            "reason": trouble.full if trouble else "",
            "draining": watcher.is_draining,
            "watcher": os.getpid(),
            "server": {
                "pid": watcher.server.pid if watcher.server.returncode is None else None,
                "version": watcher.version,
                "restarts": watcher.restarts,
                "since": time.time() - (time.monotonic() - watcher.since),
            },
            "errors": watcher.net.report(),
            "models": {name: _detail(model, troubles[name]) for name, model in models.items()},
        },
    }


def why_not_ready(watcher: "Watcher") -> Trouble | None:
    """What keeps all of it from being ready, whatever the models are; None if nothing does."""
    public = ""
    if watcher.is_draining:
        return Trouble("it is draining", "it is draining")
    if watcher.state.name == "STARTING":
        public = "it is starting"
    elif watcher.state.name == "WAITING":
        public = "tritonserver ended"
    elif watcher.reconciler is not None and not watcher.reconciler.is_heard:
        return Trouble("tritonserver does not answer", "tritonserver does not answer")
    return Trouble(public, watcher.trouble or public) if public else None


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


def is_live(watcher: "Watcher") -> bool:
    """False once tritonserver has been away for too long. A first start may take its time."""
    away = time.monotonic() - watcher.served
    return not watcher.restarts or away < DEAD_SECONDS


def _summary(model: Model, trouble: Trouble | None) -> JSON:
    return {
        "ready": trouble is None,
        "reason": trouble.public if trouble else "",
        "replicas": [each["state"] for each in model.replicas],
    }


def _detail(model: Model, trouble: Trouble | None) -> JSON:
    return {
        "ready": trouble is None,
        "reason": trouble.full if trouble else model.reason,
        "backend": model.backend,
        "steps": model.steps(),
        "versions": model.versions,
        "restarts": model.restarts,
        "reloads": model.reloads,
        "stubs": [{"instance": stub.instance, "pid": stub.pid} for stub in model.stubs],
        "replicas": model.replicas,
    }
