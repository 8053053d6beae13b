"""Decoders in one running batch generate what transformers generates of each prompt alone."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from python_mp.model.errors import LoadError
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding.families.generation import Decoder
from python_mp.sharding.native import kernels
from python_mp.sharding.panels import Panels
from python_mp.sharding.shard import Shard
from python_mp.sharding.slices import Recorder
from python_mp.sharding.weights import Tensors
from tests.support import decoding
from tests.support.campaigns import some
from tests.support.decoding import Asked, Ranks

NAMES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi")
LAYOUTS = ((1, 1), (2, 1), (3, 1), (1, 2), (2, 3))
TIES = 2
BLOCKS = 64
PAGE = Path(__file__).parents[2] / "docs/generate.md"
ROW = re.compile(r"^\| (any|stages, and one rank each|none) \| (.+) \|$", re.MULTILINE)
ALWAYS = {"cohere2", "granite", "olmo2", "phi3", "mixtral", "falcon"}
"""Beside NAMES; all others are a campaign."""


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
@pytest.mark.parametrize("name", some(NAMES, 2))
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


@pytest.mark.parametrize("size", [1, 3])
def test_a_tied_head_and_its_embedding_have_one_weight(size: int) -> None:
    """In a build's file and in a rank, as the head wants it."""
    family, ids = decoding.causal("llama"), list(range(3, 40))
    model = replace(family, values={**family.values, "vocab_size": 96}).make().eval()
    recorder = Recorder(Tensors(model.state_dict(), torch.float32))
    where = 0, size, 0, 1, torch.float32, torch.device("cpu"), Path(), {}, Alone()
    Decoder(Shard(*where, recorder, panels=False), deepcopy(model.config))
    assert len([name for name in recorder.tensors() if "embed" in name or "head" in name]) == 1
    ranks = Ranks(model, size, 1, BLOCKS, torch.float32)
    for decoder in ranks.decoders:
        assert decoder.logits is not None
        weight = decoder.logits.whole.lm_head.weight
        assert decoder.encoder.model.get_input_embeddings().weight is weight
        assert isinstance(weight, Panels) == (kernels is not None)
    step = {"INPUT_IDS": ids, "cu_seqlens": [0, 37], "context_lengths": [37], "sampled": [0]}
    found = ranks.step({**step, "block_table": [[5, 9, 2]]})
    torch.testing.assert_close(found, model(torch.tensor([ids])).logits[:, -1])


TABLE = [
    pytest.param(ranks, name, marks=() if name in ALWAYS else pytest.mark.campaign)
    for ranks, names in ROW.findall(PAGE.read_text())
    for name in names.split(", ")
]


def test_the_table_is_there() -> None:
    assert {each.values[1] for each in TABLE} > ALWAYS


@pytest.mark.parametrize(("ranks", "name"), TABLE)
def test_every_model_of_the_docs(ranks: str, name: str) -> None:
    model = decoding.tiny_causal(name)
    if ranks == "none":
        with pytest.raises(LoadError):
            Ranks(model, 1, 1, BLOCKS, torch.float32)
        return
    every = decoding.asked(model, 4, 40, 6)
    size = 1 if ranks.startswith("stages") else 2
    split = Ranks(model, size, 2, BLOCKS, torch.float32)
    assert decoding.run(split, every, BLOCKS, 0, 16) <= TIES
    if size == 1:
        with pytest.raises(LoadError, match="use one rank a stage"):
            Ranks(model, 2, 1, BLOCKS, torch.float32)


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("bert", "not causal"),
        ("roberta", "do not only see"),
        ("bloom", "do not only see"),
        ("mamba", "do not only see"),
        ("opt", "Done.* has no attribute"),
    ],
)
def test_what_cannot_generate(model_type: str, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        Ranks(decoding.tiny_causal(model_type), 1, 1, BLOCKS, torch.float32)
