"""On a real GPU: what each family computes there, with and without CUDA graphs.

Nothing here runs where there is no GPU.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_mp.model.batch import CU_SEQLENS
from python_mp.rank.engines import torch as engine
from python_mp.rank.static_steps import sizes
from tests.support import decoding
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.decoder_stage import Stepped
from tests.support.decoding import Ranks
from tests.support.families import FAMILIES, Family
from tests.support.replicas import Array, lone_rank

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

WITHOUT_GRAPHS = {
    "gemma2",  # Its soft cap has no kernel here.
    *("t5", "deberta_v2", "mpnet"),  # Biases and rectangles are made of lengths.
}
MOST_TOKENS = 256
LEAST = {"float32": 0.99999, "bfloat16": 0.997}
"""Cosine of all of a text's states to those of a processor, in float32."""


def wider(family: Family) -> Mapping[str, Any]:
    """Of heads of 16: flash attention has them in eights."""
    sizes = {48: 64, 12: 16, 70: 128}
    return {
        name: sizes.get(value, value) if isinstance(value, int) else value
        for name, value in family.values.items()
    }


@pytest.mark.parametrize("dtype", LEAST)
@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if not f.takes_images])
def test_families(name: str, dtype: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    made = Family(family.model, family.config, wider(family), family.exact).make()
    made.save_pretrained(tmp_path / "1")
    ids = tensor("INPUT_IDS", INT32, -1, allow_ragged_batch=True)
    states = tensor("HIDDEN_STATES", FP32, -1, made.config.hidden_size)
    sizes = {"engine": "torch", "max_batch_tokens": MOST_TOKENS, "float32_products": "exact"}
    right = engine.load(lone_rank(model_config(tmp_path, [ids], [states], **sizes)))
    config = model_config(tmp_path, [ids], [states], gpu=0, dtype=dtype, **sizes)
    stage = engine.load(lone_rank(config, 0))
    asked = [batch(seed) for seed in range(12)]
    wanted = [right.forward(each)["HIDDEN_STATES"] for each in asked]
    for _ in range(2):  # Without graphs, and with.
        landings = [stage.begin(each) for each in asked[:2]]
        found = [landing()["HIDDEN_STATES"] for landing in landings]
        found += [stage.forward(each)["HIDDEN_STATES"] for each in asked[2:]]
        for inputs, ours, theirs in zip(asked, found, wanted, strict=True):
            for begin, end in zip(inputs[CU_SEQLENS], inputs[CU_SEQLENS][1:], strict=False):
                assert cosine(ours[begin:end], theirs[begin:end]) >= LEAST[dtype]
        while stage.improve():
            pass
    assert stage._graphs is not None
    has_graphs = bool(stage._graphs._graphs)
    windowed = dtype == "float32" and has_narrow_window(made.config)  # There is no kernel for it.
    assert has_graphs == (name not in WITHOUT_GRAPHS and not windowed)


def has_narrow_window(config: Any) -> bool:
    said = (getattr(config, name, None) for name in ("sliding_window", "local_attention"))
    return any(window is not None and window < MOST_TOKENS for window in said)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi"])
def test_decoders(name: str) -> None:
    model, blocks = decoding.model(name), 64
    asked = decoding.asked(model, 8, 50, 12)
    ranks = Ranks(model, 1, 1, blocks, torch.float32, torch.device("cuda"))
    assert decoding.run(ranks, asked, blocks, 1, 20) <= 2


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_decoder_with_graphs(name: str, tmp_path: Path) -> None:
    stage = engine.load(
        lone_rank(decoding.served_config(tmp_path, name, gpu=0, float32_products="exact"), 0)
    )
    asked = decoding.asked(decoding.model(name), 12, 40, 30)
    for _ in range(2):  # While graphs are captured, and with all of them.
        for each in asked:
            each.done, each.blocks, each.cached = [], [], 0
        assert decoding.run(Stepped(stage, 3), asked, stage.blocks, 3, 20) <= 2
        while stage.improve():
            pass
    assert stage._graphs is not None
    assert set(stage._graphs._graphs) == set(sizes(32))


def batch(seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 60, random.integers(1, 5))
    return {
        CU_SEQLENS: np.cumsum([0, *lengths]).astype(np.int32),
        "INPUT_IDS": random.integers(3, 99, lengths.sum()).astype(np.int32),
    }


def cosine(a: Array, b: Array) -> float:
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
