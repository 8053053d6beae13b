"""Tokens are chosen as vLLM and transformers define it, whatever is asked for beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from python_mp.model.errors import InvalidInput
from python_mp.model.sampling_columns import Real, Whole
from python_mp.model.sampling_parameters import read
from python_mp.sharding import sampling
from python_mp.sharding.philox import philox, uniform
from python_mp.sharding.sampling import Sampling, sample

VOCABULARY = 40
SEEDS = st.integers(-(2**63), 2**63 - 1)
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=8)


@dataclass(frozen=True)
class Wish:
    """What one request asks for, and its logits."""

    logits: list[float]
    temperature: float = 0
    top_k: int = 0
    top_p: float = 1
    min_p: float = 0
    presence: float = 0
    frequency: float = 0
    repetition: float = 1
    seed: int = 0
    position: int = 0
    logprobs: int = -1
    prompt: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    bias: dict[int, float] = field(default_factory=dict)

    @property
    def history(self) -> list[int]:
        has_penalty = self.presence or self.frequency or self.repetition != 1
        return [*self.prompt, *self.answer] if has_penalty else []


def settings_of(wishes: list[Wish]) -> Sampling:
    def ends(parts: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(parts)], dtype=torch.int32)

    reals, wholes = torch.zeros(len(wishes), len(Real)), torch.zeros(len(wishes), len(Whole))
    wholes = wholes.long()
    for row, wish in enumerate(wishes):
        for real in list(Real)[:-1]:
            reals[row, real] = getattr(wish, real.name.lower())
        for whole in Whole:
            wholes[row, whole] = getattr(wish, whole.name.lower())
    return Sampling(
        reals,
        wholes,
        torch.tensor([token for wish in wishes for token in wish.history], dtype=torch.int32),
        ends([len(wish.history) for wish in wishes]),
        torch.tensor([len(wish.prompt) for wish in wishes], dtype=torch.int32),
        torch.tensor([token for wish in wishes for token in wish.bias], dtype=torch.int32),
        torch.tensor([value for wish in wishes for value in wish.bias.values()]),
        ends([len(wish.bias) for wish in wishes]),
    )


def sampled(wishes: list[Wish]) -> sampling.Sampled:
    logits = torch.tensor([wish.logits for wish in wishes]).reshape(
        len(wishes), VOCABULARY if len(wishes) == 0 else -1
    )
    before = logits.clone()
    found = sample(logits, settings_of(wishes))
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    return found


# The definitions once more, one number after another.


def adjusted(wish: Wish) -> list[float]:
    found = [value + wish.bias.get(token, 0) for token, value in enumerate(wish.logits)]
    for token in {*wish.history}:
        value = found[token]
        found[token] = value / wish.repetition if value > 0 else value * wish.repetition
    for token in {*wish.answer}:
        found[token] -= wish.frequency * wish.answer.count(token) + wish.presence
    return found


def kept(wish: Wish) -> dict[int, float]:
    """Weights of the tokens that can be drawn, by id."""
    found = adjusted(wish)
    best = max(found)
    weights = {n: math.exp((each - best) / wish.temperature) for n, each in enumerate(found)}
    weights = {n: weight for n, weight in weights.items() if weight >= wish.min_p}
    order = sorted(weights, key=lambda n: -weights[n])
    if 0 < wish.top_k < len(order):
        last = weights[order[wish.top_k - 1]]
        weights = {n: weight for n, weight in weights.items() if weight >= last}
    if wish.top_p < 1:
        total, before, last = sum(weights.values()), 0.0, 1.0
        for n in sorted(weights, key=lambda n: -weights[n]):
            if before and before >= wish.top_p * total:
                break
            last, before = weights[n], before + weights[n]
        weights = {n: weight for n, weight in weights.items() if weight >= last}
    return weights


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """After the paper, in Python's integers."""
    a, b, c, d = counter
    k, other = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b = right >> 32 ^ b ^ k, right & 0xFFFFFFFF
        c, d = left >> 32 ^ d ^ other, left & 0xFFFFFFFF
        k, other = (k + 0x9E3779B9) & 0xFFFFFFFF, (other + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def allowed(wish: Wish) -> set[int]:
    """The ids that are right; more than one where the number lies at a border."""
    if not wish.temperature:
        found = adjusted(wish)
        return {n for n, value in enumerate(found) if value >= max(found) - 1e-5}
    words = [number & 0xFFFFFFFF for number in (wish.seed, wish.seed >> 32)]
    high, low, *_ = plain_philox([wish.position, 0, 0, 0], words)
    number = (((high >> 6) << 26 | low >> 6) + 0.5) / 2**52
    weights = kept(wish)
    ends = dict(zip(weights, accumulate(weights.values()), strict=True))
    wanted = number * sum(weights.values())
    return {n for n, end in ends.items() if end - weights[n] - 1e-6 <= wanted <= end + 1e-6}


def float32(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, allow_subnormal=False)


@st.composite
def wishes(draw: st.DrawFn) -> Wish:
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logits = torch.randn(VOCABULARY, generator=numbers) * draw(st.sampled_from([0.1, 3, 30]))
    return Wish(
        logits.tolist(),
        draw(st.sampled_from([0, 0, 0.5, 1, 2])),
        draw(st.sampled_from([0, 1, 5, VOCABULARY, 99])),
        draw(float32(0, 1)),
        draw(st.sampled_from([0, 0, 0.125, 0.5, 1])),
        *(draw(st.sampled_from([0, 0.5, -1])) for _ in range(2)),
        draw(st.sampled_from([1, 1, 1.25, 0.5])),
        draw(SEEDS),
        draw(st.integers(0, 2**31)),
        draw(st.integers(-1, 4)),
        draw(TOKENS),
        draw(TOKENS),
        draw(st.dictionaries(st.integers(0, VOCABULARY - 2), float32(-8, 8) | st.just(-math.inf))),
    )


@given(st.lists(wishes(), max_size=5), st.sampled_from([4, 1024]))
@settings(max_examples=100, deadline=None)
def test_each_gets_what_it_asks_for_in_any_company(asked: list[Wish], few: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "FEW", few)
        found = sampled(asked)
    for row, wish in enumerate(asked):
        assert int(found.ids[row]) in allowed(wish)
        alone = sampled([wish])
        assert alone.ids.equal(found.ids[row : row + 1])
    most = max((wish.logprobs for wish in asked), default=-1)
    if most < 0:
        assert found.logprobs is found.top_ids is None
        return
    assert found.logprobs is not None
    assert found.top_ids is not None
    raw = torch.tensor([wish.logits for wish in asked]).double().log_softmax(1)
    chosen = raw.gather(1, found.ids.long()[:, None])[:, 0]
    torch.testing.assert_close(found.logprobs.double(), chosen, rtol=1e-5, atol=1e-5)
    best = raw.topk(most)
    assert found.top_ids.long().equal(best.indices)
    assert found.top_logprobs is not None
    torch.testing.assert_close(found.top_logprobs.double(), best.values, rtol=1e-5, atol=1e-5)


@given(wishes(), wishes())
@settings(max_examples=40, deadline=None)
def test_what_can_be_drawn_is_what_transformers_leaves(wish: Wish, other: Wish) -> None:
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    def theirs() -> Iterator[Tensor]:
        scores = torch.tensor([wish.logits])
        if wish.history:
            ids = torch.tensor([wish.history])
            scores = RepetitionPenaltyLogitsProcessor(wish.repetition)(ids, scores)
        yield scores
        scores = TemperatureLogitsWarper(float(wish.temperature))(None, scores)
        if wish.min_p:
            scores = MinPLogitsWarper(wish.min_p)(None, scores)
        if wish.top_k:
            scores = TopKLogitsWarper(wish.top_k)(None, scores)
        yield TopPLogitsWarper(wish.top_p)(None, scores) if wish.top_p < 1 else scores

    wish = Wish(**{**vars(wish), "bias": {}, "presence": 0, "frequency": 0})
    wish = Wish(**{**vars(wish), "temperature": max(wish.temperature, 0.5)})
    penalised, left = theirs()
    said = settings_of([wish, other])
    both = torch.tensor([wish.logits, other.logits])
    ours = sampling._adjusted(both, said)
    torch.testing.assert_close(ours[:1], penalised)
    weights = ((ours - ours.amax(1, keepdim=True)).double() / wish.temperature).exp()
    found = (weights >= sampling._least(weights, said))[0]
    differ = (found != left[0].isfinite()).nonzero().flatten()
    assert len(differ) <= 1  # a sum at the border of top_p, in float32 there
    if len(differ):
        order = weights[0].sort(descending=True)
        sums = torch.where(weights[0] >= wish.min_p, weights[0], 0)[order.indices].cumsum(0)
        assert ((sums / sums[-1] - wish.top_p).abs() < 1e-5).any()


VECTORS = {
    (0, 0, 0, 0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    (0xFFFFFFFF,) * 6: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): (
        *(0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
"""Of Random123's known answers: counter and key, and what comes of them."""


@pytest.mark.parametrize("given", VECTORS)
def test_philox(given: tuple[int, ...]) -> None:
    found = philox(torch.tensor([given[:4]]), torch.tensor([given[4:]]))
    assert tuple(found[0].tolist()) == VECTORS[given]
    assert tuple(plain_philox([*given[:4]], [*given[4:]])) == VECTORS[given]


def test_numbers_of_a_stream_are_uniform_and_never_0_or_1() -> None:
    numbers = uniform(torch.full((100_000,), -7), torch.arange(100_000))
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = torch.histc(numbers.float(), 100, 0, 1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 149  # chi-square, 99 degrees, p = 0.001


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    probabilities = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
    count = 20_000
    asked = Wish(probabilities.log().tolist(), temperature=1)
    said = settings_of([asked])
    many = Sampling(
        said.sampling.expand(count, -1),
        torch.tensor([[0, seed, 0, -1] for seed in range(count)]),
        said.history,
        said.history_cu.new_zeros(count + 1),
        said.history_prompt.expand(count),
        said.bias_ids,
        said.bias_values,
        said.bias_cu.new_zeros(count + 1),
    )
    found = sample(torch.tensor([asked.logits]).expand(count, -1), many).ids.long().bincount()
    wanted = probabilities * count
    assert ((found - wanted) ** 2 / wanted).sum() < 18.5  # chi-square, 4 degrees, p = 0.001


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("logits", [[0.0, math.nan, 1.0], [-math.inf] * 3, [0.0, math.inf, 1.0]])
def test_nothing_is_chosen_of_what_is_no_distribution(
    logits: list[float], temperature: float
) -> None:
    asked = [Wish(logits, temperature, logprobs=1), Wish([0.0, 0.0, 9.0], 1e-30)]
    assert sampled(asked).ids.tolist() == [-1, 2]


EXTREMES = [0, 1e-320, 1e-46, 1e-38, 1e-6, 0.01, 1, 1.9, 2, 50, 100, 1e38, 1e300]
"""As float32 the second and the third are 0, and their reciprocals infinite."""
NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "presence_penalty": "presence",
    "frequency_penalty": "frequency",
    "repetition_penalty": "repetition",
}


@given(
    st.dictionaries(st.sampled_from(sorted(NAMES)), st.sampled_from(EXTREMES), max_size=4),
    st.sampled_from([1e-30, 1.0, 1e4, 1e30]),
)
def test_whatever_may_be_asked_numbers_give_a_token(asked: dict[str, float], size: float) -> None:
    """What is said to be the model's fault is never the client's."""
    try:
        read(asked, VOCABULARY)
    except InvalidInput:
        assume(False)
    logits = [size * math.sin(n) for n in range(VOCABULARY)]
    reals = {NAMES[name]: value for name, value in asked.items()}
    found = sampled([Wish(logits, prompt=[1, 2, 3], answer=[3, 4, 5], **reals)])
    assert found.ids.item() >= 0
