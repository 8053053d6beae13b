"""Decoders in one running batch generate what transformers generates of each prompt alone."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest
import torch

from tests.support import decoding
from tests.support.decoding import Asked, Ranks

NAMES = (*("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi"),)
LAYOUTS = ((1, 1), (2, 1), (3, 1), (1, 2), (2, 3))
BLOCKS = 64


@cache
def asked(name: str) -> list[Asked]:
    return decoding.asked(decoding.model(name), 8, 50, 12)


@pytest.mark.parametrize("name", NAMES)
def test_as_transformers_generates(name: str) -> None:
    ties = 0
    for seed, layout in enumerate(LAYOUTS):
        ranks = Ranks(decoding.model(name), *layout, BLOCKS, torch.float32)
        ties += decoding.run(ranks, deepcopy(asked(name)), BLOCKS, seed, 20)
    assert ties <= 2
