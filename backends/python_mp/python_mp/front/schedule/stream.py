"""A request whose answer is generated, token by token, and sent in parts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...model.errors import PythonMpError
from ...model.request import Answer, Array, Outputs, Request
from ...model.sampling_columns import Real, Whole
from ...model.sampling_parameters import SamplingParameters
from .pages import Pages
from .stop_strings import StopStrings

CONTEXT_IDS = 8
"""Tokens before a part that go with it, so that its text can be made of it alone."""
NOTHING_BEFORE = np.array([-1], np.int32)
"""Of an answer's first part: Triton's generate_stream fails at a tensor without values."""


_NOTHING = np.zeros(0, np.int32)


class StreamAnswer(Answer, Protocol):
    """As `Answer`; before `send`, which sends the last part, come any number of others."""

    def part(self, outputs: Mapping[str, Array]) -> None: ...


class Token(NamedTuple):
    """What the ranks have made. The last three only where logprobs were asked for."""

    id: int
    logprob: float = 0.0
    top_ids: Array = _NOTHING
    """int32 [at least as many as asked for]."""
    top_logprobs: Array = _NOTHING


class Shown(NamedTuple):
    """How much of what was generated the client may see by now."""

    tokens: int = 0
    reason: str = ""
    """Why it has ended: "stop" or "length"; empty as long as it has not."""
    trim: int = 0
    """Characters at the end that belong to a stop string."""


@dataclass(eq=False, kw_only=True)
class Stream(Request):
    """`ids` has room for the prompt and all that may be generated; of these `length` are known. A
    group that ends takes only what was cached with it: prompt and generated tokens are the input
    of the next one, and nothing is sent twice.

    Attributes:
        ids: int32 [prompt and most tokens that may be generated].
        stop_ids: those that end it.
        ends_by: the client's own time-out, a `perf_counter`.
        deaths: groups that have died with it in hand since it was last given a token.
    """

    answer: StreamAnswer
    settings: SamplingParameters
    ids: Array
    prompt: int
    length: int
    stop_ids: frozenset[int]
    decode: Callable[[list[int]], str] | None = None
    """Text of ids, as the client's is made; None where no parameter is about text."""
    ends_by: float = math.inf
    deaths: int = 0
    pages: Pages = field(init=False)
    runs: bool = False
    """It has blocks."""
    found: int | None = None
    """Tokens of the prompt that were in the cache when it began; None before that."""
    last_token: float = 0.0
    shown: Shown = field(default_factory=Shown)
    failure: PythonMpError | None = None
    """It is to be told this instead of what else there may be."""
    _sent: int = 0
    _tokens: list[Token] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pages = Pages(self.ids)
        stops = self.settings.stop
        self.strings = StopStrings(stops, self.decode) if stops and self.decode else None
        self.most = len(self.ids)
        """Tokens, the prompt's included."""

    @property
    def generated(self) -> int:
        return self.length - self.prompt

    @property
    def is_over(self) -> bool:
        """It has its last token, or its answer."""
        return self.answered or bool(self.shown.reason or self.failure)

    @property
    def is_suspect(self) -> bool:
        """It is to be computed with few others."""
        return self.company < math.inf and not self.is_over

    @property
    def missing(self) -> int:
        """Known tokens that are not in the cache; one, if only the last one is to be read."""
        return self.length - self.pages.cached

    @cached_property
    def reals(self) -> tuple[float, ...]:
        """Its row of `sampling`."""
        asked = self.settings
        values = {
            Real.TEMPERATURE: asked.temperature,
            Real.TOP_P: asked.top_p,
            Real.MIN_P: asked.min_p,
            Real.PRESENCE: asked.presence_penalty,
            Real.FREQUENCY: asked.frequency_penalty,
            Real.REPETITION: asked.repetition_penalty,
            Real.SPARE: 0.0,
        }
        return tuple(values[column] for column in Real)

    @property
    def wholes(self) -> tuple[int, ...]:
        """Its row of `sampling_ints`."""
        first, last = self._wholes
        return (*first, self.generated, *last)

    @cached_property
    def _wholes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Before and behind POSITION, the only one that changes."""
        asked = self.settings
        values = {
            Whole.TOP_K: asked.top_k,
            Whole.SEED: asked.seed,
            Whole.LOGPROBS: -1 if asked.logprobs is None else asked.logprobs,
        }
        sides = range(Whole.POSITION), range(Whole.POSITION + 1, len(Whole))
        first, last = (tuple(values[Whole(column)] for column in side) for side in sides)
        return first, last

    @cached_property
    def content(self) -> bytes:
        """A hash of the prompt and of what was asked for."""
        asked = {
            **vars(self.settings),
            "seed": self.settings.seed * bool(self.settings.temperature),
        }
        return blake2b(super().content + repr(asked).encode(), digest_size=16).digest()

    def described(self) -> tuple[Mapping[str, Array], dict[str, Any]]:
        said = {
            "prompt": self.prompt,
            "most": len(self.ids),
            "stop_ids": sorted(self.stop_ids),
            "ends_in": self.ends_by - time.perf_counter(),
            "settings": asdict(self.settings),
        }
        return {"INPUT_IDS": self.ids[None, : self.length]}, said

    def append(self, token: Token) -> None:
        """The next one. It clears the stream of what other groups have died of."""
        self.ids[self.length] = token.id
        self.length += 1
        if self.settings.logprobs is not None:
            self._tokens.append(token)
        self.suspicion, self.deaths, self.company = 0.0, 0, math.inf
        self.deadline = self.ends_by
        self.last_token = time.perf_counter()
        self.shown = self._look(token.id)

    def resume(self, known: Array) -> None:
        """Goes on behind these, which were generated and handed on elsewhere."""
        for token in known.tolist():
            self.append(Token(token))
        self._sent = self.generated

    def _look(self, token: int) -> Shown:
        count, least = self.generated, self.settings.min_tokens
        trim = self.strings.add(token) if self.strings else 0
        if count > least and token in self.stop_ids:
            return Shown(count, "stop", self._text_of_last())
        if count >= least and trim:
            return Shown(count, "stop", trim)
        if self.length >= self.most:
            return Shown(count, "length")
        return Shown(self.strings.clear if self.strings else count)

    def _text_of_last(self) -> int:
        """Characters by which the last token, which ends the stream, makes the text longer; one of
        the model's own makes none."""
        if (
            self.decode is None
            or int(self.ids[self.length - 1]) not in self.settings.stop_token_ids
        ):
            return 0
        last = self.ids[max(self.prompt, self.length - CONTEXT_IDS) : self.length].tolist()
        return max(0, len(self.decode(last)) - len(self.decode(last[:-1])))

    def take(self) -> tuple[Outputs, bool] | None:
        """What was not sent yet, and whether it is the last part; None if there is nothing. For
        one thread."""
        shown, start = self.shown, self._sent
        if shown.tokens <= start and not shown.reason:
            return None
        self._sent = shown.tokens
        first, last = self.prompt + start, self.prompt + shown.tokens
        before = self.ids[max(self.prompt, first - CONTEXT_IDS) : first]
        usage = self.prompt, self.generated, self.found or 0
        outputs = {
            "OUTPUT_IDS": self.ids[None, first:last].copy(),
            "CONTEXT_IDS": (before if start else NOTHING_BEFORE)[None].copy(),
            "FINISH_REASON": np.array([[shown.reason.encode()]], np.object_),
            "USAGE": np.array([usage], np.int32),
            "TRIM": np.array([[shown.trim]], np.int32),
        }
        if self.settings.logprobs is not None:
            outputs |= _logprobs(self._tokens[start : shown.tokens], self.settings.logprobs)
        return outputs, bool(shown.reason)


def _logprobs(tokens: list[Token], top: int) -> Outputs:
    """float32 [1, n]; where asked for, int32 and float32 [1, n, K]."""
    outputs = {"LOGPROBS": np.array([[token.logprob for token in tokens]], np.float32)}
    if top:
        outputs["TOP_IDS"] = np.zeros((1, len(tokens), top), np.int32)
        outputs["TOP_LOGPROBS"] = np.zeros((1, len(tokens), top), np.float32)
        for at, token in enumerate(tokens):
            outputs["TOP_IDS"][0, at] = token.top_ids[:top]
            outputs["TOP_LOGPROBS"][0, at] = token.top_logprobs[:top]
    return outputs
