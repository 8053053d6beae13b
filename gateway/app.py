"""The application: what stands where."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gateway import (
    chat_completions,
    embeddings,
    errors,
    model_list,
    reranking,
    text_completions,
)
from gateway.guard import OPEN, Guard
from gateway.registry import Registry
from gateway.silence import Limits
from gateway.upstream import Triton

ENDPOINTS = (model_list, embeddings, reranking, chat_completions, text_completions)


def create(
    triton_url: str, *, admin_token: str = "", token: str = "", limits: Limits | None = None
) -> FastAPI:
    """
    Args:
        triton_url: host:port of Triton's gRPC.
        admin_token: Triton's, without which nobody sees its models.
        token: what clients must send; without one everybody may ask.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.triton = Triton.at(triton_url, admin_token, limits or Limits())
        app.state.registry = Registry(app.state.triton)
        app.state.started = int(time.time())
        yield
        await app.state.triton.close()

    app = FastAPI(title="OpenAI's interface to Triton", lifespan=lifespan, docs_url=None)
    app.router.redirect_slashes = False
    errors.install(app)
    for endpoint in ENDPOINTS:
        app.include_router(endpoint.router)
    app.add_api_route(OPEN, _health, methods=["GET"])
    app.add_middleware(Guard, token=token)
    return app


async def _health(request: Request) -> JSONResponse:
    """503 while Triton does not answer."""
    await request.app.state.registry.all()
    return JSONResponse({"status": "ok"})
