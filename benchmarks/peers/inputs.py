"""What peers are given, made once under build/peers/: a graph of the checkpoint, and repositories
for Triton."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BertModel

from benchmarks.peers.venv import FOLDER
from benchmarks.texts import CHECKPOINT
from build_scripts import checkpoint_tokenizer
from build_scripts.job import REPOSITORY
from build_scripts.publish import versions
from server.process.installation import PROJECT

MODELS = PROJECT / "benchmarks" / "models"
EMBED = ("embed", "embed_tokenizer", "embed_encoder", "embed_vectors")
LOWEST = -1e4
"""Added to the scores of what only fills a row."""


class Hidden(torch.nn.Module):
    """IDS and MASK [texts, tokens] to hidden states [texts, tokens, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(
            CHECKPOINT.path,
            add_pooling_layer=False,
            attn_implementation="eager",
            dtype=torch.float32,
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        bias = (1 - mask[:, None, None, :].float()) * LOWEST
        types = torch.zeros_like(ids)
        found = self.bert(input_ids=ids, attention_mask=bias, token_type_ids=types)
        hidden: Tensor = found.last_hidden_state
        return hidden


class Sentence(Hidden):
    """The same to the mean of a text's rows, of length 1: [texts, width]."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = mask[:, :, None].float()
        return normalize((super().forward(ids, mask) * weights).sum(1) / weights.sum(1))


def graph() -> Path:
    """A folder with graph.onnx, texts to vectors, and tokenizer.json."""
    folder = FOLDER / "graph"
    if not (folder / "tokenizer.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _export(Sentence(), folder / "graph.onnx", ("IDS", "MASK", "VECTORS"))
        checkpoint_tokenizer.load(CHECKPOINT).save(str(folder / "tokenizer.json"))
    return folder


def optimum() -> Path:
    """The checkpoint with model.onnx, hidden states as Optimum calls them."""
    folder = FOLDER / "optimum"
    if not (folder / "model.onnx").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(CHECKPOINT.path, folder)
        names = ("input_ids", "attention_mask", "last_hidden_state")
        _export(Hidden(), folder / "model.onnx", names)
    return folder


def _export(module: Hidden, path: Path, names: tuple[str, str, str]) -> None:
    """Fused by ONNX Runtime's own tool."""
    from onnxruntime.transformers import optimizer

    ids = torch.full((2, 7), 100)
    axes = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracing exporter, whose graphs the tool fuses more
        torch.onnx.export(
            module.eval(),
            (ids, torch.ones_like(ids)),
            path,
            input_names=names[:2],
            output_names=names[2:],
            dynamic_axes=dict.fromkeys(names, axes),
            dynamo=False,
        )
    heads, width = CHECKPOINT.config["num_attention_heads"], CHECKPOINT.config["hidden_size"]
    fused = optimizer.optimize_model(str(path), "bert", num_heads=heads, hidden_size=width)
    fused.save_model_to_file(str(path))


def ours() -> Path:
    """A model repository with `embed` and its steps, as they are served."""
    folder = _empty("ours")
    for name in EMBED:
        newest = str(versions(REPOSITORY / name)[-1])
        ignore = shutil.ignore_patterns(*(each for each in _versions(name) if each != newest))
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignore, copy_function=os.link)
    return folder


def plain(model: str, values: Mapping[str, object]) -> Path:
    """A model repository with one model of benchmarks/models, words of its config replaced."""
    folder = _empty(model)
    shutil.copytree(MODELS / model, folder / model)
    config = folder / model / "config.pbtxt"
    text = config.read_text()
    for word, value in values.items():
        text = text.replace(word, str(value))
    config.write_text(text)
    return folder


def _versions(name: str) -> list[str]:
    return [str(version) for version in versions(REPOSITORY / name)]


def _empty(name: str) -> Path:
    folder = FOLDER / "repositories" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
