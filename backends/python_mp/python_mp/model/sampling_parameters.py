"""How a request wants its tokens chosen, and when it wants to end: Triton's request parameters,
read once.

Each may also come as text ("0.7"), since not every client can send every type. Names that are
none of ours belong to other steps of the ensemble and are passed over, unless they are nearly one
of ours.
"""

from __future__ import annotations

import difflib
import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import InvalidInput

MOST_LOGPROBS = 20
MOST_BIASES = 2048
"""Of a request: its own, and those of ids that end it."""
_MOST_STOPS, _MOST_CHARACTERS, _MOST_IDS = 16, 256, 1000
_WORDS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class SamplingParameters:
    """Without any: the likeliest token each time, until the model says that it is through.

    Attributes:
        max_tokens: None for as many as the context has room for.
        min_tokens: no stop counts before there are so many.
        temperature: 0 for the likeliest token, without a draw.
        top_k: draw among so many; 0 for all.
        seed: the same one, with the same prompt, draws the same tokens. By chance if not given.
        logit_bias: added to the logits of these ids.
        stop: texts that end the answer and are no part of it.
        stop_token_ids: ids that do so, beside the model's own.
        ignore_eos: the model's own ones do not.
        logprobs: of so many of the likeliest tokens besides; None for no logprobs at all.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = field(default_factory=lambda: secrets.randbits(63))
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far decide on the next one's chances."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty
        return penalties != (0.0, 0.0, 1.0)


def read(given: Mapping[str, Any], vocabulary: int) -> SamplingParameters:
    """Raises InvalidInput, naming the parameter and what it may be."""
    known = [each.name for each in fields(SamplingParameters)]
    for name in given.keys() - set(known):
        if close := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            raise InvalidInput(f"unknown parameter '{name}'; did you mean '{close[0]}'?")
    values = {name: _READERS[name](name, given[name]) for name in known if name in given}
    settings = SamplingParameters(**values)
    if settings.max_tokens is not None and settings.min_tokens > settings.max_tokens:
        raise InvalidInput(
            f"min_tokens {settings.min_tokens} is more than max_tokens {settings.max_tokens}"
        )
    for name, ids in (
        ("logit_bias", settings.logit_bias),
        ("stop_token_ids", settings.stop_token_ids),
    ):
        if wrong := [each for each in ids if each >= vocabulary]:
            raise InvalidInput(
                f"'{name}' has the id {wrong[0]}; the model's are below {vocabulary}"
            )
    return settings


def _refuse(name: str, value: Any, wanted: str) -> InvalidInput:
    return InvalidInput(f"parameter '{name}' is {value!r:.60}; it must be {wanted}")


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        wanted = f"a whole number, {least} to {most}"
        try:
            number = float(value) if isinstance(value, float) else int(value)
        except (ValueError, TypeError):
            raise _refuse(name, value, wanted) from None
        if isinstance(value, bool) or number != number // 1 or not least <= number <= most:
            raise _refuse(name, value, wanted)
        return int(number)

    return read


def _real(least: float, most: float, *, open_below: bool = False) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        bounds = f"above {least:g} and at most" if open_below else f"{least:g} to"
        wanted = f"a number, {bounds} {most:g}"
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (ValueError, TypeError, OverflowError):
            raise _refuse(name, value, wanted) from None
        if not least <= number <= most or (open_below and number == least):
            raise _refuse(name, value, wanted)
        return number

    return read


def _switch(name: str, value: Any) -> bool:
    try:
        return _WORDS[str(value).lower()]
    except KeyError:
        raise _refuse(name, value, "true or false") from None


def _json(name: str, value: Any, wanted: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise _refuse(name, value, wanted) from None


def _stops(name: str, value: Any) -> tuple[str, ...]:
    wanted = (
        f"text, or a JSON list of at most {_MOST_STOPS} texts of 1 to {_MOST_CHARACTERS} characters"
    )
    texts = value
    if isinstance(value, str):
        texts = _json(name, value, wanted) if value.lstrip().startswith("[") else [value]
    if not isinstance(texts, list) or len(texts) > _MOST_STOPS:
        raise _refuse(name, value, wanted)
    if not all(isinstance(each, str) and 0 < len(each) <= _MOST_CHARACTERS for each in texts):
        raise _refuse(name, value, wanted)
    return tuple(dict.fromkeys(texts))


def _ids(name: str, value: Any) -> tuple[int, ...]:
    wanted = f"a JSON list of at most {_MOST_IDS} token ids"
    ids = _json(name, value, wanted)
    ids = [ids] if isinstance(ids, int) else ids
    if not isinstance(ids, list) or len(ids) > _MOST_IDS:
        raise _refuse(name, value, wanted)
    return tuple(dict.fromkeys(_whole(0, 2**31 - 1)(name, each) for each in ids))


def _biases(name: str, value: Any) -> dict[int, float]:
    wanted = f"a JSON object of at most {_MOST_IDS} token ids, each with a number, -100 to 100"
    biases = _json(name, value, wanted)
    if not isinstance(biases, dict) or len(biases) > _MOST_IDS:
        raise _refuse(name, value, wanted)
    identity, number = _whole(0, 2**31 - 1), _real(-100, 100)
    return {identity(name, each): number(name, bias) for each, bias in biases.items()}


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "max_tokens": _whole(1, 2**31 - 1),
    "min_tokens": _whole(0, 2**31 - 1),
    "temperature": _real(0, 100),
    "top_k": _whole(0, 2**31 - 1),
    "top_p": _real(0, 1, open_below=True),
    "min_p": _real(0, 1),
    "presence_penalty": _real(-2, 2),
    "frequency_penalty": _real(-2, 2),
    "repetition_penalty": _real(0.01, 100),
    "logit_bias": _biases,
    "seed": _whole(-(2**63), 2**63 - 1),
    "stop": _stops,
    "stop_token_ids": _ids,
    "ignore_eos": _switch,
    "logprobs": _whole(0, MOST_LOGPROBS),
}
