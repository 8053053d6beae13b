"""What the watcher knows, as the pages of its health server."""

import os
import time
from typing import TYPE_CHECKING, Any

from server.model import Model

if TYPE_CHECKING:
    from server.watcher import Watcher

DEAD_SECONDS = 60.0  # without service; then restarting is no help, and whoever watches us may try


def of(watcher: "Watcher") -> dict[str, Any]:
    """The arguments of `Health.tell`."""
    models = dict(watcher.caretaker.models) if watcher.caretaker is not None else {}
    reasons = {name: model.why_not(models) for name, model in models.items()}
    reason = why_not_ready(watcher) or "; ".join(
        f"{name}: {why}" for name, why in sorted(reasons.items()) if why
    )
    summary = {"ready": not reason, "reason": reason}
    return {
        "live": is_live(watcher),
        "ready": {
            **summary,
            "models": {
                name: {
                    "ready": not reasons[name],
                    "replicas": [each["state"] for each in model.replicas],
                }
                for name, model in sorted(models.items())
            },
        },
        "status": {
            **summary,
            "draining": watcher.is_draining,
            "watcher": os.getpid(),
            "server": {
                "pid": watcher.server.pid if watcher.server.returncode is None else None,
                "version": watcher.version,
                "restarts": watcher.restarts,
                "since": time.time() - (time.monotonic() - watcher.since),
            },
            "errors": watcher.net.report(),
            "models": {
                name: _detail(model, reasons[name]) for name, model in sorted(models.items())
            },
        },
    }


def why_not_ready(watcher: "Watcher") -> str:
    """What keeps all of it from being ready, whatever the models are; empty if nothing does."""
    if watcher.is_draining:
        return "it is draining"
    if watcher.state.name == "STARTING":
        return watcher.trouble or "it is starting"
    if watcher.state.name == "WAITING":
        return watcher.trouble or "tritonserver ended"
    if watcher.caretaker is not None and not watcher.caretaker.is_heard:
        return "tritonserver does not answer"
    return ""


def is_live(watcher: "Watcher") -> bool:
    """False once tritonserver has been away for too long. A first start may take its time."""
    away = time.monotonic() - watcher.served
    return not watcher.restarts or away < DEAD_SECONDS


def _detail(model: Model, reason: str) -> dict[str, Any]:
    return {
        "ready": not reason,
        "reason": reason or model.reason,
        "backend": model.backend,
        "steps": model.steps(),
        "versions": model.versions,
        "restarts": model.restarts,
        "reloads": model.reloads,
        "stubs": [{"instance": stub.instance, "pid": stub.pid} for stub in model.stubs],
        "replicas": model.replicas,
    }
