"""A tiny checkpoint of a BERT, as a sentence-transformers folder, to be changed in every way; and
those of the project's models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import BertProcessing

from build_scripts import fetch, job
from build_scripts.checkpoint_folder import Checkpoint
from python_mp.sharding.checkpoint import INDEX

SPECIAL = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
WORDS = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", "##a", "##b", "##c", "##e", "##s", "the", "."]
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": len(WORDS),
    "layer_norm_eps": 1e-12,
}
HALVES = "one.safetensors", "two.safetensors"
PACKAGE = "sentence_transformers.models."
CHAIN = [
    {"idx": 0, "name": "0", "path": "", "type": f"{PACKAGE}Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{PACKAGE}Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{PACKAGE}Normalize"},
]
FOLDER: dict[str, Any] = {
    "config.json": CONFIG,
    "modules.json": CHAIN,
    "1_Pooling/config.json": {"embedding_dimension": 8, "pooling_mode": "mean"},
    "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
    "config_sentence_transformers.json": {"prompts": {"query": "", "document": ""}},
    "tokenizer_config.json": {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": 32,
    },
}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of the tensors that transformers' module of this config has."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**config), add_pooling_layer=False)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(shape, np.float32) / 2
        for name, shape in shapes(config).items()
    }


def word_piece(words: list[str] = WORDS) -> Tokenizer:
    """It pads, as that of the packaged checkpoint does."""
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens([word for word in SPECIAL if word in words])
    tokenizer.enable_padding(length=4)
    return tokenizer


def tiny_bert(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes the checkpoint; `changes` replace files of FOLDER by the value under their name, or
    leave one out where it is None."""
    for name, value in {**FOLDER, **changes}.items():
        if value is not None:
            write_json(folder / name, value)
    save_file(tensors(CONFIG, seed), folder / "model.safetensors")
    word_piece().save(str(folder / "tokenizer.json"))
    return folder


def split(folder: Path, seed: int = 0) -> Path:
    """An index with two files, as big checkpoints have; returns the second file."""
    parts: list[dict[str, Any]] = [{}, {}]
    for number, (name, tensor) in enumerate(tensors(CONFIG, seed).items()):
        parts[number % 2][name] = tensor
    for file, part in zip(HALVES, parts, strict=True):
        save_file(part, folder / file)
    files = {name: file for file, part in zip(HALVES, parts, strict=True) for name in part}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": files})
    return folder / HALVES[1]


def packaged(model: str = "embed_encoder") -> Checkpoint:
    """What the model's recipe.toml names."""
    folder = fetch.local_folder(job.load(model))
    assert folder is not None
    return Checkpoint(folder)
