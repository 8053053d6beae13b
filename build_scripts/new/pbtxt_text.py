"""config.pbtxt of every model of an ensemble, as text with comments: the one template."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from build_scripts.new import chain
from build_scripts.new.chain import Sizes, Step, Takes, Tensor
from python_mp.sharding.families.task import Kind

WARM_TOKENS = 8
SENTENCES = {
    "TEXT": "A sentence of the usual length, to begin with.",
    "QUERY": "How long is a sentence?",
}
"""What warms a step up."""
ABOUT: Mapping[tuple[Kind, Takes], str] = {
    ("embed", "text"): "A text in, its vector out",
    ("rerank", "text"): "A query and a text in, how well they fit out",
    ("classify", "text"): "A text in, its best labels out",
    ("classify", "image"): "The bytes of a JPEG or PNG file in, its best labels out",
    ("tokens", "text"): "A text in, its named spans out",
}
FILES = {"TEXT": "text", "QUERY": "query", "IMAGE": "image", "LENGTHS": "lengths"}


@dataclass(frozen=True)
class Layout:
    """Of the encoder's ranks, on CPUs or on the first GPUs."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    replicas: int = 1
    on_gpus: bool = False

    @property
    def world_size(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size


@dataclass(frozen=True)
class Template:
    """The configs of the ensemble `name`.

    Attributes:
        most_tokens: of a packed batch, where it is not the backend's own limit.
        about: what the encoder is, for its first line.
    """

    name: str
    kind: Kind
    takes: Takes
    sizes: Sizes
    layout: Layout
    about: str
    most_tokens: int | None = None
    most_rows: int = 64

    @property
    def steps(self) -> tuple[Step, ...]:
        return chain.steps(self.kind, self.takes, self.sizes)

    def configs(self) -> dict[str, str]:
        """By the models' names."""
        made = {self.name: _text(self._ensemble())}
        for step in self.steps:
            lines = self._encoder(step) if step.job == chain.ENCODER else self._step(step)
            made[f"{self.name}_{step.job}"] = _text(lines)
        return made

    def _head(self, model: str, key: str, value: str, comment: str = "") -> Iterator[str]:
        if comment:
            yield f"# {comment}"
        yield from (f'name: "{model}"', f'{key}: "{value}"')
        yield from (f"max_batch_size: {self.most_rows}", "")

    def _ensemble(self) -> Iterator[str]:
        inputs, outputs = chain.ends(self.steps)
        comment = f"{ABOUT[self.kind, self.takes]}: the three steps below, chained inside Triton."
        yield from self._head(self.name, "platform", "ensemble", comment)
        yield from self._list("input", inputs)
        yield from self._list("output", outputs)
        yield from ("", "# What it does; the build makes its steps by it.")
        yield from (_parameter("task", self.kind), "", "ensemble_scheduling {", "  step [")
        yield from ",\n".join(self._part(step, {*inputs, *outputs}) for step in self.steps).split(
            "\n"
        )
        yield from ("  ]", "}")

    def _part(self, step: Step, outside: set[str]) -> str:
        lines = [f'model_name: "{self.name}_{step.job}"', "model_version: -1"]
        for key, names in (("input_map", step.inputs), ("output_map", step.outputs)):
            for name in names:
                value = name if name in outside else name.lower()
                lines.append(f'{key} {{ key: "{name}" value: "{value}" }}')
        return "\n".join(["    {", *(f"      {line}" for line in lines), "    }"])

    def _step(self, step: Step) -> Iterator[str]:
        yield from self._head(f"{self.name}_{step.job}", "backend", "python")
        yield from self._list("input", step.inputs)
        filled = "Rows of one request are filled up to the longest; LENGTHS says what is real."
        yield from self._list("output", step.outputs, filled if "LENGTHS" in step.outputs else "")
        yield from ("", "# Hands everything that waits to one execute call.", "dynamic_batching {}")
        yield "instance_group [ { count: 1 kind: KIND_CPU } ]"
        yield from self._warm_up(step)

    def _encoder(self, step: Step) -> Iterator[str]:
        sizes = self.layout
        yield from self._head(f"{self.name}_{step.job}", "backend", "python_mp", self.about)
        is_ragged = "LENGTHS" in step.inputs
        ragged = "Ragged: requests of unequal length share a batch, and nothing is padded."
        yield from self._list("input", step.inputs, ragged if is_ragged else "", to_encoder=True)
        yield from self._list("output", step.outputs)
        yield from ("", "dynamic_batching {}", "", *self._instances(), "")
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            yield _parameter(name, getattr(sizes, name))
        if is_ragged:
            yield "# The input that says how many leading elements of each row are real."
            yield _parameter("lengths", "LENGTHS")
        if self.most_tokens is not None:
            unit = "tokens" if is_ragged else "images"
            yield f"# Of a batch, in {unit}: not more than the largest in recipe.toml."
            yield _parameter("max_batch_tokens", self.most_tokens)
        yield "# About three seconds of work: more is refused at once."
        yield _parameter("max_queue_requests", 256)
        yield from self._warm_up(step)

    def _instances(self) -> Iterator[str]:
        sizes = self.layout
        ranks, many = sizes.world_size, sizes.replicas
        first = range(0, ranks * many, ranks)
        groups = [("lead", list(first), "")]
        if ranks > 1:
            others = [gpu for gpu in range(ranks * many) if gpu not in first]
            groups.append(("shard", others, " passive: true"))
            yield "# A rank lives with each instance: active ones answer, passive ones hold shards."
        yield "instance_group ["
        for name, gpus, passive in groups:
            where = f"count: {len(gpus)} kind: KIND_CPU"
            if sizes.on_gpus:
                where = f"count: 1 kind: KIND_GPU gpus: {_numbers(gpus)}"
            comma = "," if len(groups) > 1 and name == "lead" else ""
            yield f'  {{ name: "{name}" {where}{passive} }}{comma}'
        yield "]"

    def _list(
        self, key: str, names: Sequence[str], comment: str = "", *, to_encoder: bool = False
    ) -> Iterator[str]:
        found = chain.tensors(self.kind, self.sizes)
        entries = [_tensor(found[name], to_encoder=to_encoder) for name in names]
        if len(entries) == 1 and not comment:
            yield f"{key} [ {entries[0]} ]"
            return
        yield f"{key} ["
        if comment:
            yield f"  # {comment}"
        yield from ",\n".join(f"  {entry}" for entry in entries).split("\n")
        yield "]"

    def _warm_up(self, step: Step) -> Iterator[str]:
        yield from (
            "",
            "# Run before the model counts as ready: no client pays for what comes only once.",
        )
        yield from ("model_warmup [ {", '  name: "first"', "  batch_size: 1")
        found = chain.tensors(self.kind, self.sizes)
        for name in step.inputs:
            tensor = found[name]
            if tensor.is_optional:
                continue
            dims = [WARM_TOKENS if dim < 0 else dim for dim in tensor.dims]
            data = f'input_data_file: "{FILES[name]}"' if name in FILES else "zero_data: true"
            yield f'  inputs {{ key: "{name}" value {{'
            yield f"    data_type: {tensor.data_type} dims: {_numbers(dims)} {data}"
            yield "  } }"
        yield "} ]"

    def warm_up_files(self) -> dict[str, bytes]:
        """By their paths in the repository."""
        return {
            f"{self.name}_{step.job}/warmup/{FILES[name]}": _data(name)
            for step in self.steps
            for name in step.inputs
            if name in FILES
        }


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _tensor(tensor: Tensor, *, to_encoder: bool) -> str:
    words = [f'name: "{tensor.name}" data_type: {tensor.data_type} dims: {_numbers(tensor.dims)}']
    if tensor.is_optional:
        words.append("optional: true")
    if to_encoder and tensor.dims[0] < 0:
        words.append("allow_ragged_batch: true")
    return f"{{ {' '.join(words)} }}"


def _numbers(values: Iterable[int]) -> str:
    return f"[ {', '.join(map(str, values))} ]"


def _parameter(key: str, value: object) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _data(name: str) -> bytes:
    """Triton reads strings with their length before them."""
    if name == "LENGTHS":
        return struct.pack("<i", WARM_TOKENS)
    data = _picture() if name == "IMAGE" else SENTENCES[name].encode()
    return struct.pack("<i", len(data)) + data


def _picture() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), "gray").save(file, "PNG")
    return file.getvalue()
