"""A stream that another replica computes: what goes there, and what comes back.

Home stays the one that knows the stream: what comes back are tokens, and home looks for the end of
the answer, holds back what may belong to a stop string, and sends parts. So a peer that is lost
with a stream has lost nothing: home goes on behind the last token that came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...model.request import Array
from ...model.sampling_parameters import SamplingParameters
from .stream import Token

_TUPLES = "stop", "stop_token_ids"


def settings(said: Mapping[str, Any]) -> SamplingParameters:
    """Of `Stream.described`."""
    fields = dict(said["settings"])
    fields |= {name: tuple(fields[name]) for name in _TUPLES}
    fields["logit_bias"] = {int(token): bias for token, bias in fields["logit_bias"].items()}
    return SamplingParameters(**fields)


def part(outputs: Mapping[str, Array]) -> str:
    """A part of a guest's answer, for its home."""
    said = {"found": int(outputs["USAGE"][0, 2])}
    names = ("OUTPUT_IDS", "LOGPROBS", "TOP_IDS", "TOP_LOGPROBS")
    return json.dumps(said | {n: outputs[n][0].tolist() for n in names if n in outputs})


def tokens(text: str) -> tuple[list[Token], int]:
    """Of such a part, and how many of the prompt were in the peer's cache."""
    said = json.loads(text)
    return list(_tokens(said)), said["found"]


def _tokens(said: Mapping[str, Any]) -> Iterator[Token]:
    ids = said["OUTPUT_IDS"]
    none: list[list[float]] = [[] for _ in ids]
    chosen = said.get("LOGPROBS") or [0.0] * len(ids)
    tops = said.get("TOP_IDS", none), said.get("TOP_LOGPROBS", none)
    for token, logprob, top, logprobs in zip(ids, chosen, *tops, strict=True):
        yield Token(token, logprob, np.array(top, np.int32), np.array(logprobs, np.float32))
