"""What bodies that ask for text have in common, and the parameters that Triton gets of them."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.bodies import Body, Listed, Unused
from gateway.upstream import Parameters

MOST_CHOICES, MOST_STOPS, STOP_CHARACTERS = 16, 16, 256
MOST_IDS, MOST_LOGPROBS = 1024, 20
SEEDS = 1 << 63
LEAST_TOP_P = 1e-6
"""OpenAI's 0, which leaves the likeliest token alone: the model asks for more than nothing."""
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationBody(Body):
    """OpenAI's, and below those of the model that OpenAI has not (`extra_body` of its client)."""

    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    stop: Annotated[list[Stop], Field(default_factory=list, max_length=MOST_STOPS), Listed]
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]],
        Field(default_factory=dict, max_length=MOST_IDS),
    ]
    user: Unused = None

    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    stop_token_ids: Annotated[list[int], Field(default_factory=list, max_length=MOST_IDS)]
    ignore_eos: bool = False

    def tokens_wanted(self) -> int | None:
        return self.max_tokens

    def logprobs_wanted(self) -> int | None:
        """Of so many of the likeliest tokens; None for no logprobs."""
        return None

    def parameters(self, choice: int) -> Parameters:
        """Triton's request parameters. Numbers with a point go as text: not every Triton reads
        them otherwise."""
        found: dict[str, Any] = {
            "temperature": str(self.temperature),
            "top_p": str(max(self.top_p, LEAST_TOP_P)),
            **{name: str(getattr(self, name)) for name in REAL & self.model_fields_set},
            **{name: getattr(self, name) for name in PLAIN & self.model_fields_set},
            **{name: json.dumps(getattr(self, name)) for name in ASJSON if getattr(self, name)},
            "max_tokens": self.tokens_wanted(),
            "logprobs": self.logprobs_wanted(),
            "seed": None if self.seed is None else _shifted(self.seed, choice),
        }
        return {name: value for name, value in found.items() if value is not None}


REAL = {"presence_penalty", "frequency_penalty", "min_p", "repetition_penalty"}
PLAIN = {"top_k", "min_tokens", "ignore_eos"}
ASJSON = ("stop", "stop_token_ids", "logit_bias")


def _shifted(seed: int, choice: int) -> int:
    """Each choice draws for itself."""
    return (seed + choice + SEEDS) % (2 * SEEDS) - SEEDS
