"""Tokenizers of every kind, with every kind of limit, give AutoTokenizer's ids; and the vectors
that come of them are sentence-transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from build_scripts import checkpoint_tokenizer
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.sentences import sentences
from tests.support.checkpoints import write_json
from tests.support.families import FAMILIES
from tests.support.sentence_folders import encoded
from tests.unit.test_sentence_folder import ensemble

SIZE = 320
TEXTS = sentences(30)
LONG = " ".join(TEXTS)


def byte_level(*special: str) -> Tokenizer:
    """As of GPT-2, RoBERTa, Qwen: no character is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=[*special], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def around(tokenizer: Tokenizer, template: str) -> Tokenizer:
    names = [name for name in template.split() if not name.startswith("$")]
    ids = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def roberta() -> Tokenizer:
    tokenizer = byte_level("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram() -> Tokenizer:
    """As of T5: an end, no beginning."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return around(tokenizer, "$A </s>")


@dataclass(frozen=True)
class Kind:
    """
    Attributes:
        family: of tests.support.families.
        make: its tokenizer.
        said: of tokenizer_config.json.
        limit: tokens of the longest text; None where there is no end.
        architecture: what config.json says, if not the base model: what generates is pooled
            otherwise.
        in_batches: whether sentence-transformers can pad, which needs a token for it.
    """

    family: str
    make: Callable[[], Tokenizer]
    said: dict[str, Any]
    limit: int | None
    in_batches: bool = True
    architecture: str | None = None


ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
QWEN = {"pad_token": "<|end|>", "eos_token": "<|end|>", "padding_side": "left"}
MODERN = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
KINDS = {
    "roberta": Kind("roberta", roberta, {**ROBERTA, "model_max_length": 126}, 126),
    "roberta that says too much": Kind("roberta", roberta, ROBERTA, 126, in_batches=False),
    "xlm_roberta": Kind("xlm_roberta", roberta, {**ROBERTA, "model_max_length": 126}, 126),
    "t5": Kind("t5", unigram, {"pad_token": "<pad>", "eos_token": "</s>"}, None),
    "gpt2": Kind("gpt2", lambda: byte_level("<|end|>"), {"eos_token": "<|end|>"}, 128, False),
    "llama without a token to pad": Kind(
        "llama", lambda: around(byte_level("<s>"), "<s> $A"), {"bos_token": "<s>"}, 128, False
    ),
    "qwen3": Kind(
        "qwen3",
        lambda: around(byte_level("<|end|>"), "$A <|end|>"),
        QWEN,
        128,
        architecture="Qwen3ForCausalLM",
    ),
    "qwen3 cut on the left": Kind(
        "qwen3",
        lambda: around(byte_level("<|end|>"), "$A <|end|>"),
        {**QWEN, "truncation_side": "left", "model_max_length": 40},
        40,
    ),
    "modernbert": Kind(
        "modernbert",
        lambda: around(byte_level("[PAD]", "[CLS]", "[SEP]", "[MASK]"), "[CLS] $A [SEP]"),
        {**MODERN, "model_max_length": 100},
        100,
    ),
}


def made(folder: Path, kind: Kind) -> Path:
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[kind.family]
    replace(family, values={**family.values, "vocab_size": SIZE}).make().save_pretrained(folder)
    if kind.architecture:
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", {**config, "architectures": [kind.architecture]})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=kind.make(), **kind.said)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_ids_and_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from transformers import AutoTokenizer

    kind = KINDS[name]
    folder = made(tmp_path / "folder", kind)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = checkpoint_tokenizer.load(Checkpoint(folder, "embed"))
    for text in (*TEXTS[:8], LONG):
        wanted = theirs(text, truncation=kind.limit is not None, max_length=kind.limit)
        assert ours.encode(text).ids == wanted["input_ids"]
    if kind.limit:
        assert len(ours.encode(LONG).ids) == kind.limit
    if kind.in_batches:
        texts = [*TEXTS[:5], *([LONG] if kind.limit else [])]
        found = ensemble(folder, tmp_path, monkeypatch)(texts)
        np.testing.assert_allclose(found, encoded(folder, texts), atol=5e-5, rtol=1e-4)
