"""How a model that generates is judged: by the likeliest continuations of some texts, which have to
be transformers' own, id by id."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from python_mp.front.local import Local
    from python_mp.model.request import Array

    Outputs = dict[str, Array]

TOKENS = 16
"""Of each continuation."""
TIE = 1e-5
"""Of the reference's two best logits: closer ones may change places."""


def reference(model: Any, request: Outputs) -> Outputs:
    """OUTPUT_IDS int32 and LOGPROBS float32 [1, tokens], by transformers' `generate`, and GAPS,
    float32 [1, tokens], between the two best logits."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # No penalty, no end.
    said = model.generate(
        torch.from_numpy(request["INPUT_IDS"]).long(),
        attention_mask=torch.ones(request["INPUT_IDS"].shape, dtype=torch.long),
        max_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.cat(said.logits).float()
    best = logits.topk(2).values
    return {
        "OUTPUT_IDS": said.sequences[:, -TOKENS:].int().numpy(),
        "LOGPROBS": logits.log_softmax(-1).amax(-1)[None].numpy(),
        "GAPS": (best[:, 0] - best[:, 1])[None].numpy(),
    }


@dataclass(frozen=True)
class Continued:
    """One text's continuation beside the reference's.

    Attributes:
        agreement: share of the tokens that are the reference's, or as likely as these to it.
        ties: those that are not, and as likely.
        max_error, mean_error: of the logprobs of the tokens that are.
    """

    agreement: float
    ties: int
    max_error: float
    mean_error: float


def compare(replica: Local, request: Outputs, expected: Outputs) -> Continued:
    """Where another token comes than the reference's, it is asked again from the reference's on."""
    prompt: list[int] = request["INPUT_IDS"][0].tolist()
    wanted, logprobs, gaps = (
        expected[name][0].tolist() for name in ("OUTPUT_IDS", "LOGPROBS", "GAPS")
    )
    errors, missed, ties, done = list[float](), 0, 0, 0
    while done < len(wanted):
        parts = _asked(replica, [*prompt, *wanted[:done]], len(wanted) - done).result()
        ids, found = (_joined(parts, name) for name in ("OUTPUT_IDS", "LOGPROBS"))
        for token, logprob in zip(ids, found, strict=True):
            done += 1
            if token != wanted[done - 1]:
                is_tie = gaps[done - 1] < TIE
                missed, ties = missed + (not is_tie), ties + is_tie
                break
            errors.append(abs(logprob - logprobs[done - 1]))
    share = 1 - missed / len(wanted)
    return Continued(share, ties, max(errors, default=np.inf), mean(errors or [np.inf]))


def latency(replica: Local, requests: Sequence[Outputs]) -> dict[str, float]:
    """Milliseconds a token of one text, the one of middle length; tokens a second of all at once,
    their prompts included."""
    prompts = sorted((each["INPUT_IDS"][0].tolist() for each in requests), key=len)
    usual = prompts[len(prompts) // 2]
    took = [_seconds(replica, [usual], count) for count in (1, TOKENS)]
    per_token = max(took[1] - took[0], 0.0) / (TOKENS - 1)
    everything = _seconds(replica, prompts, TOKENS)
    return {"p50_ms": per_token * 1e3, "tokens_per_second": len(prompts) * TOKENS / everything}


class _Parts:
    """What comes of a stream; `whole` has all of its parts."""

    keeps = False

    def __init__(self) -> None:
        self._parts: list[Mapping[str, Array]] = []
        self.whole: Future[list[Mapping[str, Array]]] = Future()

    def part(self, outputs: Mapping[str, Array]) -> None:
        self._parts.append(outputs)

    def send(self, outputs: Mapping[str, Array]) -> None:
        self.part(outputs)
        self.whole.set_result(self._parts)

    def fail(self, error: Exception) -> None:
        self.whole.set_exception(error)

    def is_cancelled(self) -> bool:
        return False


def _asked(replica: Local, prompt: list[int], tokens: int) -> Future[list[Mapping[str, Array]]]:
    answer = _Parts()
    replica.stream(prompt, answer, max_tokens=tokens, ignore_eos=True, logprobs=0)
    return answer.whole


def _joined(parts: Sequence[Mapping[str, Array]], name: str) -> list[Any]:
    return [value for part in parts for value in part[name][0].tolist()]


def _seconds(replica: Local, prompts: Sequence[list[int]], tokens: int) -> float:
    began = time.perf_counter()
    for each in [_asked(replica, prompt, tokens) for prompt in prompts]:
        each.result()
    return time.perf_counter() - began


def summary(found: Sequence[Continued]) -> dict[str, float]:
    """Over all texts, by the names that recipes use."""
    return {
        "samples": len(found),
        "top1_agreement_min": mean(each.agreement for each in found),
        "ties": sum(each.ties for each in found),
        "max_error": max(each.max_error for each in found),
        "mean_error": mean(each.mean_error for each in found),
    }
