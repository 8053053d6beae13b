"""The built-in family `encoder`: BERT (arXiv:1810.04805) from a Hugging Face checkpoint folder.

It follows the same contract as a user's module.py: the module is called with the packed batch and,
on later stages, what the stage before returned.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...model.errors import LoadError
from .. import checkpoint
from ..layers import ColumnParallelLinear, LayerNorm, RowParallelLinear, VocabParallelEmbedding
from ..packed import Packed
from ..shard import Shard

_MOST = 1 << 24
"""Of anything in config.json: beyond it a number is a mistake."""


@dataclass(frozen=True)
class EncoderConfig:
    """The checkpoint's config.json, as far as it matters here. What it leaves out is as in
    transformers' BertConfig."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @classmethod
    def read(cls, path: Path) -> EncoderConfig:
        """Raises LoadError for what the encoder family does not compute."""
        try:
            raw = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise LoadError(f"{path} is no JSON: {error}") from None
        if not isinstance(raw, dict):
            raise LoadError(f"{path} is no checkpoint's config.json: it holds no object")
        if found := checkpoint.unsupported(raw):
            raise LoadError(f"{path} has {found}")
        known: dict[str, Any] = {
            field.name: raw.get(field.name, field.default) for field in fields(cls)
        }
        for name, value in known.items():
            kind = float if name == "layer_norm_eps" else int
            if type(value) is not kind or not 0 < value < _MOST:
                raise LoadError(f"{path}: {name} is {value!r}, which is no size of a model")
        if known["hidden_size"] % known["num_attention_heads"]:
            raise LoadError(f"{path}: hidden_size must be a multiple of num_attention_heads")
        return cls(**known)


def check(config: EncoderConfig, batch: Packed) -> None:
    """Raises InvalidInput for ids or lengths that the checkpoint has no embedding for."""
    ids, longest = batch["INPUT_IDS"], max(batch.lengths)
    if longest > config.max_position_embeddings:
        batch.refuse(
            batch.cu_seqlens.diff() == longest,
            f"a sequence has {longest} tokens; the model's limit is"
            f" {config.max_position_embeddings}",
        )
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= config.vocab_size:
        wrong = low if low < 0 else high
        said = f"INPUT_IDS holds {wrong}; ids are 0 to {config.vocab_size - 1}"
        batch.refuse(ids == wrong, said)  # Of others that are wrong it would not be true.


class Encoder(nn.Module):
    """INPUT_IDS int32 [tokens] -> HIDDEN_STATES [tokens, hidden], before any pooling."""

    def __init__(self, shard: Shard, config: EncoderConfig) -> None:
        super().__init__()
        prefix = "bert." if "bert.embeddings.LayerNorm.weight" in shard.weights else ""
        self.is_last = shard.is_last
        self.embeddings = (
            Embeddings(shard, config, f"{prefix}embeddings") if shard.is_first else None
        )
        self.blocks = nn.ModuleList(
            Block(shard, config, f"{prefix}encoder.layer.{index}")
            for index in shard.layers(config.num_hidden_layers)
        )

    def forward(self, batch: Packed, hidden: Tensor | None) -> Tensor | dict[str, Tensor]:
        x: Tensor = hidden if self.embeddings is None else self.embeddings(batch)  # type: ignore
        for block in self.blocks:
            x = block(x, batch)
        return {"HIDDEN_STATES": x} if self.is_last else x


class Embeddings(nn.Module):
    """Token + position + segment 0, normalised."""

    positions: Tensor

    def __init__(self, shard: Shard, config: EncoderConfig, name: str) -> None:
        super().__init__()
        for table, rows in (
            ("word", config.vocab_size),
            ("position", config.max_position_embeddings),
            ("token_type", config.type_vocab_size),
        ):
            _check(shard, f"{name}.{table}_embeddings.weight", rows, config.hidden_size)
        _check_pair(shard, f"{name}.LayerNorm", config.hidden_size)
        self.words = VocabParallelEmbedding(shard, f"{name}.word_embeddings")
        segment_0 = shard.weights.full(f"{name}.token_type_embeddings.weight")[0]
        positions = shard.weights.full(f"{name}.position_embeddings.weight") + segment_0
        self.register_buffer("positions", positions)
        self.norm = LayerNorm(shard, f"{name}.LayerNorm", config.layer_norm_eps)

    def forward(self, batch: Packed) -> Tensor:
        words = self.words(batch["INPUT_IDS"])
        embedded: Tensor = self.norm(words.add_(F.embedding(batch.positions, self.positions)))
        return embedded


def _check(shard: Shard, name: str, *shape: int) -> None:
    """Raises LoadError where config.json says, or leaves out, another size than the weights'."""
    if tuple(shard.weights.shape(name)) != shape:
        raise LoadError(
            f"{name} is {list(shard.weights.shape(name))}; by config.json it would be {list(shape)}"
        )


def _check_pair(shard: Shard, name: str, *shape: int) -> None:
    """A weight of that shape, and its bias."""
    _check(shard, f"{name}.weight", *shape)
    _check(shard, f"{name}.bias", shape[0])


class Block(nn.Module):
    """Self-attention and MLP, each followed by add and norm; two all-reduces."""

    def __init__(self, shard: Shard, config: EncoderConfig, name: str) -> None:
        super().__init__()
        self.heads = shard.share(config.num_attention_heads, "attention heads")
        attend, epsilon = f"{name}.attention", config.layer_norm_eps
        width, inner = config.hidden_size, config.intermediate_size
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            _check_pair(shard, f"{attend}.{part}", width, width)
        _check_pair(shard, f"{name}.intermediate.dense", inner, width)
        _check_pair(shard, f"{name}.output.dense", width, inner)
        for part in ("attention.output", "output"):
            _check_pair(shard, f"{name}.{part}.LayerNorm", width)
        self.qkv = ColumnParallelLinear(
            shard, *(f"{attend}.self.{part}" for part in ("query", "key", "value"))
        )
        self.out = RowParallelLinear(shard, f"{attend}.output.dense")
        self.norm = LayerNorm(shard, f"{attend}.output.LayerNorm", epsilon)
        self.up = ColumnParallelLinear(shard, f"{name}.intermediate.dense")
        self.down = RowParallelLinear(shard, f"{name}.output.dense")
        self.down_norm = LayerNorm(shard, f"{name}.output.LayerNorm", epsilon)

    def forward(self, x: Tensor, batch: Packed) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.heads, -1).unbind(1)
        x = self.norm(self.out(batch.attend(q, k, v)).add_(x))
        y: Tensor = self.down_norm(self.down(F.gelu(self.up(x))).add_(x))
        return y
