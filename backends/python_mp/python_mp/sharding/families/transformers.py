"""The family `transformers`: a Hugging Face module as it is, on packed rows, split among ranks.

transformers' own class is made on the meta device; its attention goes through one function, which
is registered with the library, into `batch.attend`; its linears become our parallel layers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.auto import configuration_auto

from ...model.errors import LoadError, describe
from .. import checkpoint
from ..native import kernels
from ..packed import Packed
from ..parallelize import load_weights, split
from ..rectangles import MOST_PADDING, Rectangle
from ..shard import Shard
from ..weights import Prefixed
from . import kernelled, norms, shortcuts, skeleton
from .arrangement import MASKED, Rows
from .attending import computing
from .pipeline import Given, cut_to_stage
from .plans import JOINED, plan
from .stepping import LEARNT, Stepping
from .task import Task

IDS, TYPES, TYPE_COUNT = "INPUT_IDS", "TOKEN_TYPE_IDS", "type_vocab_size"
HANDED_ON = "hidden"
MOST, MOST_LAYERS = 1 << 31, 10_000
"""Of anything in config.json: beyond it a number is a mistake."""
BEGIN_BEHIND_PADDING = {
    *("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke"),
    *("markuplm", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
}
"""Whose positions begin at pad_token_id + 1."""


def read(path: Path) -> PretrainedConfig:
    """A checkpoint's config.json.

    Raises:
        LoadError: it is of no model that transformers has, or says what nothing here computes.
    """
    try:
        raw = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is no JSON: {error}") from None
    if not isinstance(raw, dict):
        raise LoadError(f"{path} is no checkpoint's config.json: it holds no object")
    if found := checkpoint.unsupported(raw):
        raise LoadError(f"{path} has {found}")
    kind = str(raw.get("model_type"))
    if kind not in configuration_auto.CONFIG_MAPPING:
        code = ": code beside a checkpoint is never run" if raw.get("auto_map") else ""
        raise LoadError(f"{path} has model_type {kind!r}, which transformers itself has not{code}")
    for name in raw.get("architectures") or ():
        if not skeleton.is_of(name, kind):
            raise LoadError(
                f"{path} has the architecture {name}, which is no {kind} that transformers' Auto"
                " classes load: serve it as a module of your own"
            )
    for name, value in raw.items():
        most = MOST_LAYERS if "layers" in name else MOST
        if isinstance(value, int | float) and not abs(value) < most:
            raise LoadError(f"{path}: {name} is {value!r}, which is no size of a model")
    with sentences(path):
        config: PretrainedConfig = configuration_auto.CONFIG_MAPPING[kind].from_dict(raw)
    if parts := skeleton.parts(config):
        raise LoadError(f"{path} is of a {kind} of several parts{parts}")
    config.chunk_size_feed_forward = 0  # It saves memory only, and asks for lengths that divide.
    return config


@contextmanager
def sentences(what: object) -> Iterator[None]:
    """Errors of transformers, of many kinds, as LoadErrors."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(f"{what}: transformers refuses it: {describe(error)}") from error


def check(config: PretrainedConfig, batch: Packed) -> None:
    """Raises InvalidInput for ids or lengths that the checkpoint has no embedding for."""
    if not batch.is_ragged:
        return
    if not all(batch.lengths):
        batch.refuse(batch.cu_seqlens.diff() == 0, "a sequence is empty; it needs a token at least")
    longest = max(batch.contexts)
    if (most := longest_text(config)) is not None and longest > most:
        text = f"a sequence has {longest} tokens; the model's limit is {most}"
        batch.refuse(torch.tensor(batch.contexts) == longest, text)
    for name, count in {IDS: config.vocab_size, TYPES: getattr(config, TYPE_COUNT, 0)}.items():
        if name not in batch:
            continue
        low, high = (int(bound) for bound in batch[name].aminmax())
        if low < 0 or high >= count:
            wrong = low if low < 0 else high
            text = f"{name} holds {wrong}; ids are 0 to {count - 1}"
            batch.refuse(batch[name] == wrong, text)  # Of others that are wrong it is not true.


def longest_text(config: PretrainedConfig) -> int | None:
    """Tokens of the longest text that has a position; None where positions have no end."""
    most: int | None = getattr(config, "max_position_embeddings", None)
    if most is None or most == -1:  # XLNet's
        return None
    return most - config.pad_token_id - 1 if _begins_behind_padding(config) else most


def _begins_behind_padding(config: PretrainedConfig) -> bool:
    return config.model_type in BEGIN_BEHIND_PADDING and config.pad_token_id is not None


class Encoder(nn.Module):
    """A stage of a model.

    INPUT_IDS int32 [tokens] -> HIDDEN_STATES [tokens, hidden]; PIXEL_VALUES [images, channels,
    height, width] -> HIDDEN_STATES [images, patches, hidden], or [images, 1, classes] where the two
    are computed in one.

    Args:
        tied: a head behind it multiplies with its embedding's weight.
    """

    def __init__(
        self,
        shard: Shard,
        config: PretrainedConfig,
        task: Task | None = None,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        kind = task.kind if task and skeleton.in_one(config, task.kind) else None
        with sentences(f"a {config.model_type} of these sizes"):
            model = skeleton.make(config, kind)
            found = plan(config, model, shard.size, tied=tied)
            self.rows = skeleton.rows(config, kind)
        self._layers = len(shard.layers(config.num_hidden_layers)) if self.rows == "packed" else 0
        self._handover = cut_to_stage(model, config, shard)
        skeleton.finish(model, shard.device)
        shard = _past_prefix(model, shard)
        parts = {name for name, part in model.named_modules() if type(part) is not Given}
        here = parts & found.keys()
        widths = {n: m.out_features for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        split(model, {name: found[name] for name in sorted(here)}, shard, JOINED)
        load_weights(model, shard.weights)
        if self.rows == "packed":
            skeleton.bias_by_sequence(model)
        skeleton.local_widths(model, widths)
        if shard.device.type == "cuda":
            norms.fuse(model)
        shortcuts.take(model)
        self.is_last = shard.is_last
        self.model = model
        self._shard = shard
        self._stepping: Stepping | None = None
        self._takes = inspect.signature(type(model).forward).parameters
        self._padding = config.pad_token_id if _begins_behind_padding(config) else None
        self.generates = self.rows == "packed" and self._padding is None
        self._has_types = bool(getattr(config, TYPE_COUNT, 0))  # GPT-2 would add words.
        self._most_padding = MOST_PADDING if config.model_type in MASKED else 0.0

    def take_kernels(self) -> None:
        """For a module that is computed as it is: no graph is made of it from here on."""
        kernelled.take(self.model)

    def capture(self, most: int) -> Sequence[Sequence[int]]:
        """Rows of each sequence of the next batches, of which the first is captured and the others
        are checked; none where batches are the module's.

        Args:
            most: rows of those that are replayed.
        """
        if self.rows != "packed" or self._shard.device.type != "cpu" or kernels is None:
            return ()
        self._stepping = Stepping(self.model, most, self._agree)
        longest = longest_text(self.model.config) or max(map(max, LEARNT))
        return [[min(length, longest) for length in lengths] for lengths in LEARNT]

    @property
    def is_replayed(self) -> bool:
        return self._stepping is not None and self._stepping.is_replayed

    def _agree(self, said: bool) -> bool:
        shard = self._shard
        return bool(shard.all_reduce(torch.tensor([float(said)])) == shard.size)

    def forward(self, batch: Packed, hidden: Tensor | None) -> Tensor | dict[str, Tensor]:
        found = self._forwards[self.rows](self, batch, hidden)
        return {"HIDDEN_STATES": found} if self.is_last else found

    def _packed(self, batch: Packed, hidden: Tensor | None) -> Tensor:
        ids = batch[IDS]
        positions = batch.positions
        if self._padding is not None:
            positions = positions_of_words(ids, positions, self._padding)
        types = self._types(batch)
        if self._has_types and not types:
            types = {"token_type_ids": torch.zeros_like(ids)}
        given = {"input_ids": ids, "position_ids": positions, **types}

        def compute() -> Tensor:
            with computing(batch, self._layers):
                return self._call(hidden, **{name: rows[None] for name, rows in given.items()})[0]

        pages = batch.pages if self._stepping else None
        if self._stepping is None or pages is None:
            return compute()
        inputs = given if hidden is None else {**given, HANDED_ON: hidden}
        return self._stepping.step(inputs, pages, compute)

    def _in_rectangles(self, batch: Packed, hidden: Tensor | None) -> Tensor:
        rows, has_mask = {"input_ids": batch[IDS], **self._types(batch)}, self._most_padding > 0

        def compute(each: Rectangle) -> Tensor:
            given = None if hidden is None else each.take(hidden)
            mask = {"attention_mask": each.mask.long()} if has_mask else {}
            ids = {name: each.take(values).long() for name, values in rows.items()}
            return self._call(given, **ids, **mask)

        return batch.in_rectangles(compute, self._most_padding)

    def _types(self, batch: Packed) -> dict[str, Tensor]:
        """Which part of a pair each row is of, where that is given."""
        given = self._has_types and TYPES in batch
        return {"token_type_ids": batch[TYPES]} if given else {}

    def _of_images(self, batch: Packed, hidden: Tensor | None) -> Tensor:
        found = self._call(hidden, pixel_values=batch["PIXEL_VALUES"])
        if found.dim() == 2:
            return found[:, None]
        return found.flatten(2).transpose(1, 2) if found.dim() == 4 else found  # of convolutions

    _forwards: ClassVar[Mapping[Rows, Callable[..., Tensor]]] = {
        "packed": _packed,
        "rectangles": _in_rectangles,
        "images": _of_images,
    }

    def _call(self, hidden: Tensor | None, **arguments: Any) -> Tensor:
        arguments["use_cache"] = False
        known = {name: value for name, value in arguments.items() if name in self._takes}
        with self._handover.of(hidden):
            last = self.model(**known)[0]
            found = last if self.is_last else self._handover.taken
        ids = arguments.get("input_ids")
        if isinstance(found, Tensor) and (ids is None or found.shape[:2] == ids.shape):
            return found
        raise LoadError(
            f"a {type(self.model).__name__} of transformers returns no hidden state for each token"
            " or patch: serve it as a module of your own"
        )


def positions_of_words(ids: Tensor, positions: Tensor, padding: int) -> Tensor:
    """As RoBERTa numbers the rows of a text: from padding + 1 on; what is padding has no number of
    its own. ids, positions: [tokens], of packed rows."""
    words = (ids != padding).int()
    upto = words.cumsum(0)
    begins = torch.arange(ids.shape[0], device=ids.device) - positions
    return (upto - (upto - words)[begins]) * words + padding


def _past_prefix(model: Any, shard: Shard) -> Shard:
    """Checkpoints of a model with a head have its base's names behind a prefix."""
    prefix, first = f"{model.base_model_prefix}.", next(iter(model.state_dict()))
    if first in shard.weights or f"{prefix}{first}" not in shard.weights:
        return shard
    return replace(shard, given=Prefixed(shard.weights, prefix))
