"""GET /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from gateway.errors import ApiError
from gateway.registry import Model

router = APIRouter()


@router.get("/v1/models")
async def listed(request: Request) -> dict[str, Any]:
    found = await request.app.state.registry.all()
    return {"object": "list", "data": [_shown(model, request) for model in found]}


@router.get("/v1/models/{name}")
async def one(name: str, request: Request) -> dict[str, Any]:
    for model in await request.app.state.registry.all():
        if model.name == name:
            return _shown(model, request)
    raise ApiError(404, "model_not_found", f"there is no model '{name:.100}' here", "model")


def _shown(model: Model, request: Request) -> dict[str, Any]:
    started = request.app.state.started  # Triton does not say when a model was made.
    return {"id": model.name, "object": "model", "created": started, "owned_by": "triton"}
