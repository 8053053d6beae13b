"""Folders that sentence-transformers itself writes, and what it computes of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import torch

from build_scripts.sentence_modules import MODES
from python_mp.model.request import Array
from python_mp.sharding.families.task import ACTIVATIONS
from tests.support.checkpoints import tiny_bert

SETTINGS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
POOLING = "1_Pooling/config.json"
BARE: dict[str, Any] = dict.fromkeys(("modules.json", POOLING, TRANSFORMER, SETTINGS))
"""Without a file of sentence-transformers."""
PROMPTS = {"query": "the best: ", "code": "b ", "none": ""}


def sentence_transformers() -> ModuleType:
    with warnings.catch_warnings(action="ignore"):
        import sentence_transformers

        return sentence_transformers


def encoded(folder: Path, texts: Sequence[str], **how: Any) -> Array:
    with warnings.catch_warnings(action="ignore"):
        model = sentence_transformers().SentenceTransformer(str(folder), device="cpu")
        return np.asarray(model.encode(list(texts), **how))


def saved(folder: Path, seed: int) -> Path:
    """One that sentence-transformers itself writes: pooling, layers, prompts, all by chance."""
    library, random = sentence_transformers(), Random(seed)
    base = tiny_bert(folder / "base", seed, **BARE)
    modules = library.sentence_transformer.modules
    dense, normalize = library.base.modules.Dense, library.base.modules.Normalize
    words = library.base.modules.Transformer(
        str(base),
        max_seq_length=random.choice([None, 5, 16]),
        do_lower_case=random.random() < 0.3,
    )
    modes = random.sample(MODES, random.choice([1, 1, 2, 3]))
    chain: list[Any] = [words, modules.Pooling(8, modes)]
    torch.manual_seed(seed)
    width = 8 * len(modes)
    for number in range(random.choice([0, 1, 2])):
        activation = getattr(torch.nn, ACTIVATIONS[(seed + number) % len(ACTIVATIONS)])()
        bias, residual = random.random() < 0.5, random.random() < 0.5
        next_width = random.choice([width, 6, 12])
        layer = dense(
            width,
            next_width,
            bias=bias,
            activation_function=activation,
            use_residual=residual,
        )
        chain.append(layer)
        width = next_width
    for more in (normalize(), normalize(), modules.Dropout(0.5)):
        if random.random() < 0.5:
            chain.insert(random.randint(2, len(chain)), more)
    model = library.SentenceTransformer(
        modules=chain,
        device="cpu",
        prompts=PROMPTS,
        default_prompt_name=random.choice([None, "query", "code"]),
        truncate_dim=random.choice([None, None, 4]),
    )
    with warnings.catch_warnings(action="ignore"):
        model.save(str(folder / "saved"))
    return folder / "saved"
