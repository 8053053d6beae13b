"""Decoders in one running batch generate what transformers generates of each prompt alone."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest
import torch
from transformers import BertLMHeadModel

from python_mp.model.errors import LoadError
from tests.support import decoding
from tests.support.decoding import Asked, Ranks
from tests.support.tiny_models import tiny

NAMES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi")
LAYOUTS = ((1, 1), (2, 1), (3, 1), (1, 2), (2, 3))
TIES = 2
BLOCKS = 64


@cache
def asked(name: str) -> list[Asked]:
    return decoding.asked(decoding.model(name), 8, 50, 12)


@pytest.mark.parametrize("name", NAMES)
def test_as_transformers_generates(name: str) -> None:
    """Split where heads and vocabulary do not divide, in stages, and both."""
    ties = 0
    for seed, layout in enumerate(LAYOUTS):
        ranks = Ranks(decoding.model(name), *layout, BLOCKS, torch.float32)
        ties += decoding.run(ranks, deepcopy(asked(name)), BLOCKS, seed, 20)
    assert ties <= TIES


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_long_ones(name: str) -> None:
    """64 prompts of up to 500 tokens, 200 new ones."""
    model, blocks, ties = decoding.model(name, 720), 3000, 0
    every = decoding.asked(model, 64, 500, 200)
    for seed, layout in enumerate(((1, 1), (2, 1), (1, 2), (2, 2))):
        ranks = Ranks(model, *layout, blocks, torch.float32)
        ties += decoding.run(ranks, deepcopy(every), blocks, seed, 100)
    assert ties <= TIES


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_in_16_bits(name: str) -> None:
    """The same logits but for rounding: behind a prompt in two pieces, in bfloat16."""
    model, ids = decoding.model(name), list(range(3, 40))
    whole = model(torch.tensor([ids])).logits[:, -1]
    ranks = Ranks(model, 2, 2, BLOCKS, torch.bfloat16)
    table = [[5, 9, 2]]
    first = {"INPUT_IDS": ids[:20], "cu_seqlens": [0, 20], "context_lengths": [20]}
    found = ranks.step({**first, "block_table": table, "sampled": []})
    assert found.shape == (0, model.config.vocab_size)
    rest = {"INPUT_IDS": ids[20:], "cu_seqlens": [0, 17], "context_lengths": [37]}
    found = ranks.step({**rest, "block_table": table, "sampled": [0]})
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, whole, dim=-1).min() > 0.999


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("bert", "not causal"),
        ("roberta", "do not only see"),
        ("bloom", "do not only see"),
        ("mamba", "do not only see"),
        ("t5", "no t5 for the task generate"),
    ],
)
def test_what_cannot_generate(model_type: str, said: str) -> None:
    model = tiny(model_type).make()
    if model_type == "bert":
        model = BertLMHeadModel(model.config).eval()
    with pytest.raises(LoadError, match=said):
        Ranks(model, 1, 1, BLOCKS, torch.float32)
