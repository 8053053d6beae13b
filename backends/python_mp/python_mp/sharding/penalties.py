"""What is added to logits before a token is chosen, by what clients ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.sampling_columns import Real


def bias(logits: Tensor, ids: Tensor, values: Tensor, ends: Tensor) -> None:
    """Adds `values` [b] to the logits of `ids` [b], in place; row i has those from ends[i] to
    ends[i + 1]."""
    logits.index_put_((owners(ends, len(ids)), ids.long()), values, accumulate=True)


def penalise(logits: Tensor, reals: Tensor, history: Tensor, ends: Tensor, prompts: Tensor) -> None:
    """Makes tokens less likely that were there before, in place, as vLLM does: first the
    repetition penalty, of tokens of the prompt and of the answer, as of transformers'
    RepetitionPenaltyLogitsProcessor; then OpenAI's frequency and presence penalties, of tokens of
    the answer.

    Args:
        logits: float32 [rows, vocabulary].
        reals: columns Real, [rows, len(Real)].
        history: int32 [h], what each row has seen, from ends[row] to ends[row + 1].
        prompts: int32 [rows], how many of these are of the prompt.
    """
    rows, ids = owners(ends, len(history)), history.long()
    place = torch.arange(len(history), device=logits.device) - ends.long()[rows]
    is_answer = (place >= prompts[rows]).to(logits.dtype)
    often = torch.zeros_like(logits).index_put_((rows, ids), is_answer, accumulate=True)[rows, ids]
    found, said = logits[rows, ids], reals[rows]
    repetition = said[:, Real.REPETITION]
    found = torch.where(found > 0, found / repetition, found * repetition)
    found = found - said[:, Real.FREQUENCY] * often - said[:, Real.PRESENCE] * (often > 0)
    logits[rows, ids] = found  # Of a token that was there twice the same is written twice.


def owners(ends: Tensor, total: int) -> Tensor:
    """int64 [total]: the row of each element."""
    place = torch.arange(total, device=ends.device)
    return torch.bucketize(place, ends[1:].long(), right=True)
