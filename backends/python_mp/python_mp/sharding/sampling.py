"""The next token of each sequence, chosen from its logits as its client asks for.

In vLLM's order: bias, penalties, temperature, min_p, top_k, top_p. One random number decides a
draw, keyed by seed and position, so that it is the same in every company and after a restart. It
is looked up in the probabilities summed up by id, not by size: where rounding lets two tokens of
like probability change places in an order by size, the draw would jump.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..model.sampling_columns import Real, Whole
from . import penalties
from .philox import uniform

FEW = 512
"""Likeliest tokens that are looked at first: to sort the whole vocabulary takes a CPU longer than
a small model does."""


class Tensors(Protocol):
    def __getitem__(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Sampling:
    """How the tokens of m sequences are chosen: the tensors of a step, by their names.

    Attributes:
        host: the same, where they can be read without waiting for a GPU.
        sampling: float32 [m, len(Real)]; sampling_ints: int64 [m, len(Whole)].
        history: int32 [h], prompt and answer of the sequences with a penalty, sequence i from
            history_cu[i] to history_cu[i + 1]; history_prompt: int32 [m], tokens of the prompt.
        bias_ids, bias_values, bias_cu: int32 [b], float32 [b], int32 [m + 1], what is added to
            logits.
    """

    sampling: Tensor
    sampling_ints: Tensor
    history: Tensor
    history_cu: Tensor
    history_prompt: Tensor
    bias_ids: Tensor
    bias_values: Tensor
    bias_cu: Tensor
    host: Sampling | None = None

    @classmethod
    def of(cls, batch: Tensors, host: Tensors | None = None) -> Sampling:
        names = (name for name in cls.__dataclass_fields__ if name != "host")
        there = None if host is None or host is batch else cls.of(host)
        return cls(**{name: batch[name] for name in names}, host=there)

    def real(self, column: Real) -> Tensor:
        return self.sampling[:, column]

    def whole(self, column: Whole) -> Tensor:
        return self.sampling_ints[:, column]

    @cached_property
    def most(self) -> tuple[float, float, float]:
        """The highest temperature and number of logprobs, and whether tokens are left out of
        draws."""
        if self.host is not None:
            return self.host.most
        if not len(self.sampling):
            return 0, -1, 0
        narrow = (
            (self.real(Real.TOP_P) < 1)
            | (self.real(Real.MIN_P) > 0)
            | (self.whole(Whole.TOP_K) > 0)
        )
        columns = self.real(Real.TEMPERATURE), self.whole(Whole.LOGPROBS), narrow
        temperature, logprobs, is_narrow = torch.stack([each.max() for each in columns]).tolist()
        return temperature, logprobs, is_narrow


@dataclass(frozen=True)
class Sampled:
    """
    Attributes:
        ids: int32 [m]; -1 where the logits hold a NaN or nothing finite.
        logprobs: float32 [m], of the ids; None where nobody asked. Those of the model itself, as
            vLLM's: before bias, penalties and temperature.
        top_ids, top_logprobs: int32 and float32 [m, K] of the likeliest tokens, the best first; K
            is the most that is asked for.
    """

    ids: Tensor
    logprobs: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None

    def outputs(self) -> dict[str, Tensor]:
        """By the names that a step's answer has for them."""
        found = {
            "NEXT_IDS": self.ids,
            "LOGPROBS": self.logprobs,
            "TOP_IDS": self.top_ids,
            "TOP_LOGPROBS": self.top_logprobs,
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def sample(logits: Tensor, settings: Sampling) -> Sampled:
    """The next token of each row of `logits`, float32 [m, vocabulary], which stay as they are."""
    highest, logprobs, _ = settings.most
    wanted = _adjusted(logits, settings)
    best, ids = wanted.max(1)
    if highest > 0:
        ids = torch.where(settings.real(Real.TEMPERATURE) > 0, _drawn(wanted, settings), ids)
    ids = torch.where(best.isfinite(), ids, -1).int()
    return Sampled(ids) if logprobs < 0 else _with_logprobs(ids, logits, int(logprobs))


def _adjusted(logits: Tensor, settings: Sampling) -> Tensor:
    if not len(settings.bias_ids) and not len(settings.history):
        return logits
    found = logits.clone()
    penalties.bias(found, settings.bias_ids, settings.bias_values, settings.bias_cu)
    penalties.penalise(
        found,
        settings.sampling,
        settings.history,
        settings.history_cu,
        settings.history_prompt,
    )
    return found


def _drawn(logits: Tensor, settings: Sampling) -> Tensor:
    """int64 [m]: the first id up to which the probabilities add up to more than the random
    number. Nothing can be drawn that has none."""
    temperature = settings.real(Real.TEMPERATURE).double()[:, None]
    temperature = torch.where(temperature > 0, temperature, 1)  # What is not drawn is not used.
    best = logits.amax(1, keepdim=True)
    weights = logits.double().sub_(best).div_(temperature).exp_()
    if settings.most[2]:
        weights.masked_fill_(weights < _least(weights, settings), 0)
    sums = weights.cumsum_(1)
    total = sums[:, -1:]
    wanted = uniform(settings.whole(Whole.SEED), settings.whole(Whole.POSITION))[:, None] * total
    wanted = torch.minimum(wanted, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, wanted, right=True)[:, 0]


def _least(weights: Tensor, settings: Sampling) -> Tensor:
    """[m, 1]: the weight of the last token that min_p, top_k and top_p leave. One that is as likely
    stays, too.

    Args:
        weights: [m, vocabulary]; that of the likeliest token is 1.
    """
    min_p, top_p = (settings.real(each).double() for each in (Real.MIN_P, Real.TOP_P))
    asked = torch.stack([min_p, settings.whole(Whole.TOP_K).double(), top_p], 1)
    vocabulary = weights.shape[1]
    few = vocabulary if weights.is_cuda else min(FEW, vocabulary)
    found = _least_of(weights, asked, few)
    if few < vocabulary and len(rows := found.isnan().any(1).nonzero()[:, 0]):
        found[rows] = _least_of(weights[rows], asked[rows], vocabulary)
    return found


def _least_of(weights: Tensor, asked: Tensor, few: int) -> Tensor:
    """The same, NaN where the `few` likeliest do not say.

    Args:
        asked: [m, 3], min_p, top_k and top_p.
    """
    min_p, wished, top_p = asked[:, :, None].unbind(1)
    top_k = torch.where(wished < weights.shape[1], wished, 0).long()
    best = weights.topk(few).values
    kth = best.gather(1, (top_k - 1).clamp(0, few - 1))
    least = torch.maximum(min_p, torch.where(top_k > 0, kth, 0))
    # Whatever is left beside a least weight is among the likeliest, unless the last one is left.
    left = torch.where(best >= least, best, 0).sum(1, keepdim=True)
    mass = top_p * torch.where(least > 0, left, weights.sum(1, keepdim=True))
    stays = (best.cumsum(1) - best < mass).sum(1, keepdim=True).clamp(min=1)
    last = torch.where(top_p < 1, best.gather(1, stays - 1), 0)
    found = torch.maximum(least, last)
    # Also where min_p leaves more than these: of what is left their sum is only a part.
    lowest = torch.where(least > 0, least, found)
    is_open = (top_k > few) | ((top_p < 1) & (lowest <= best[:, -1:]))
    return torch.where(is_open, torch.nan, found) if few < weights.shape[1] else found


def _with_logprobs(ids: Tensor, logits: Tensor, wanted: int) -> Sampled:
    found = logits.float().log_softmax(1)
    chosen = found.gather(1, ids.long().clamp(min=0)[:, None])[:, 0]
    best = found.topk(min(wanted, found.shape[1]))
    return Sampled(ids, chosen, best.indices.int(), best.values)
