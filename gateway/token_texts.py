"""Tokens with their logprobs, as texts: the last step of the ensemble is asked for each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.upstream import Array, Triton

CONTEXT = 8
"""Tokens before one that decide on its text."""
FLUSH = b"stop"


@dataclass(frozen=True)
class Token:
    """`top`: the likeliest tokens in its place with their logprobs, best first."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


async def tokens(triton: Triton, step: str, result: Any) -> tuple[Token, ...]:
    """Each token's own text is what it adds to those before it."""
    ids, before, logprobs = (
        result.as_numpy(name).ravel().tolist() for name in ("OUTPUT_IDS", "CONTEXT_IDS", "LOGPROBS")
    )
    top_ids, top_logprobs = (
        _by_place(result.as_numpy(name), len(ids)) for name in ("TOP_IDS", "TOP_LOGPROBS")
    )
    wanted = [
        (tuple([*before, *ids[:place]][-CONTEXT:]), token)
        for place, own in enumerate(ids)
        for token in dict.fromkeys([own, *top_ids[place]])
    ]
    said = await asyncio.gather(*(_token(triton, step, *each) for each in wanted))
    shown = dict(zip(wanted, said, strict=True))
    found = []
    for place, own in enumerate(ids):
        context = tuple([*before, *ids[:place]][-CONTEXT:])
        pairs = zip(top_ids[place], top_logprobs[place], strict=True)
        top = tuple((shown[context, token], logprob) for token, logprob in pairs)
        found.append(Token(shown[context, own], logprobs[place], top))
    return tuple(found)


async def _token(triton: Triton, step: str, context: Sequence[int], token: int) -> str:
    inputs = {
        "OUTPUT_IDS": np.array([[token]], np.int32),
        "CONTEXT_IDS": np.array([context], np.int32).reshape(1, -1),
        "FINISH_REASON": np.array([[FLUSH]], np.object_),
        "TRIM": np.zeros((1, 1), np.int32),
    }
    return str((await triton.infer(step, inputs, "ANSWER")).item().decode())


def _by_place(values: Array | None, places: int) -> list[list[Any]]:
    """Of [1, places, K]; where none of the likeliest were asked for, there is no tensor."""
    if values is None or not places:
        return [[]] * places
    return list(values.reshape(places, -1).tolist())
