"""POST /v1/embeddings: models of the task `embed`."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field

from gateway import row_batches
from gateway.bodies import Body, Listed, Short, Unused, unsupported
from gateway.leaving import unless_gone
from gateway.registry import Model
from gateway.upstream import Array, Triton, texts

router = APIRouter()
MOST_INPUTS = 2048


def _no_ids(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], (int, list)):
        raise unsupported(
            "input: token ids are not read here, since a model has a tokenizer of its own; send"
            " texts (LangChain: check_embedding_ctx_length=False)",
            "input",
        )
    return value


class Wanted(Body):
    """`prompt_name`, which is not OpenAI's: what the checkpoint puts before a text."""

    input: Annotated[
        list[Short], Field(min_length=1, max_length=MOST_INPUTS), Listed, BeforeValidator(_no_ids)
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    prompt_name: str | None = None
    user: Unused = None


@router.post("/v1/embeddings")
async def embed(wanted: Wanted, request: Request) -> dict[str, Any]:
    triton: Triton = request.app.state.triton
    model = await request.app.state.registry.find(wanted.model, "embed")
    asked = triton.named(TEXT="input", DIMENSIONS="dimensions", PROMPT="prompt_name")
    vectors, count = await unless_gone(request, _infer(asked, model, wanted))
    data = [
        {"object": "embedding", "index": index, "embedding": _shown(row, wanted.encoding_format)}
        for index, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": wanted.model, "usage": usage}


async def _infer(triton: Triton, model: Model, wanted: Wanted) -> tuple[Array, int]:
    rows = len(wanted.input)
    inputs = {"TEXT": texts(*wanted.input)}
    if wanted.prompt_name is not None:
        inputs["PROMPT"] = texts(*[wanted.prompt_name] * rows)
    width = {}
    if wanted.dimensions is not None:
        width = {"DIMENSIONS": np.full((rows, 1), wanted.dimensions, np.int32)}
    vectors, count = await asyncio.gather(
        row_batches.infer(triton, model, model.name, inputs | width, "EMBEDDING"),
        row_batches.tokens(triton, model, inputs),
    )
    return vectors, count


def _shown(vector: Array, encoding: str) -> list[float] | str:
    """base64 is of float32 in little-endian order, as OpenAI's clients decode it."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector.tolist()]
