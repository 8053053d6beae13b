"""POST /v1/rerank, as Jina's and Cohere's clients send it: models of the task `rerank`."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field

from gateway import row_batches
from gateway.bodies import Body, Short, Unused, only
from gateway.leaving import unless_gone
from gateway.registry import Model
from gateway.upstream import Array, Triton, texts

router = APIRouter()
MOST_DOCUMENTS = 1000


def _text_of(value: Any) -> Any:
    """A text may come as {"text": ...}."""
    return value["text"] if isinstance(value, dict) and value.keys() == {"text"} else value


Document = Annotated[Short, BeforeValidator(_text_of)]


class Wanted(Body):
    query: Document
    documents: Annotated[list[Document], Field(min_length=1, max_length=MOST_DOCUMENTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    rank_fields: Annotated[Any, only(["text"])] = None
    max_chunks_per_doc: Annotated[Any, only(1)] = None
    max_tokens_per_doc: Annotated[Any, only()] = None
    truncation: Annotated[Any, only(True)] = None
    priority: Unused = None
    user: Unused = None


@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(wanted: Wanted, request: Request) -> dict[str, Any]:
    model = await request.app.state.registry.find(wanted.model, "rerank")
    asked = request.app.state.triton.named(QUERY="query", TEXT="documents")
    scores, count = await unless_gone(request, _infer(asked, model, wanted))
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: wanted.top_n]
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": wanted.model,
        "results": [_result(wanted, index, float(scores[index])) for index in best],
        "usage": {"prompt_tokens": count, "total_tokens": count},
        "meta": {"api_version": {"version": request.url.path[2]}},
    }


async def _infer(triton: Triton, model: Model, wanted: Wanted) -> tuple[Array, int]:
    rows = len(wanted.documents)
    inputs = {"QUERY": texts(*[wanted.query] * rows), "TEXT": texts(*wanted.documents)}
    scores, count = await asyncio.gather(
        row_batches.infer(triton, model, model.name, inputs, "SCORE"),
        row_batches.tokens(triton, model, inputs),
    )
    return scores.ravel(), count


def _result(wanted: Wanted, index: int, score: float) -> dict[str, Any]:
    found = {"index": index, "relevance_score": score}
    text = {"document": {"text": wanted.documents[index]}} if wanted.return_documents else {}
    return found | text
