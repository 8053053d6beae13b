"""How a model that generates is judged: by the likeliest continuations of some texts, which have to
be transformers' own, id by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from python_mp.model.request import Array

    Outputs = dict[str, Array]

TOKENS = 16
"""Of each continuation."""
TIE = 1e-5
"""Of the reference's two best logits: closer ones may change places."""
Ask = Callable[[list[int], int], tuple[list[int], list[float]]]
"""(prompt, tokens) -> the likeliest ones, and their logprobs."""


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


def compare(ask: Ask, prompt: list[int], expected: Outputs) -> Continued:
    """Where another token comes than the reference's, it is asked again from the reference's on."""
    wanted, logprobs, gaps = (
        expected[name][0].tolist() for name in ("OUTPUT_IDS", "LOGPROBS", "GAPS")
    )
    errors, missed, ties, done = list[float](), 0, 0, 0
    while done < len(wanted):
        ids, found = ask([*prompt, *wanted[:done]], len(wanted) - done)
        for token, logprob in zip(ids, found, strict=True):
            done += 1
            if token != wanted[done - 1]:
                is_tie = gaps[done - 1] < TIE
                missed, ties = missed + (not is_tie), ties + is_tie
                break
            errors.append(abs(logprob - logprobs[done - 1]))
    share = 1 - missed / len(wanted)
    return Continued(share, ties, max(errors, default=np.inf), mean(errors or [np.inf]))


def summary(found: Sequence[Continued]) -> dict[str, float]:
    """Over all texts, by the names that recipes use."""
    return {
        "samples": len(found),
        "top1_agreement_min": mean(each.agreement for each in found),
        "ties": sum(each.ties for each in found),
        "max_error": max(each.max_error for each in found),
        "mean_error": mean(each.mean_error for each in found),
    }
