"""config.pbtxt of every model of an ensemble: the one template."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from build_scripts.new import chain, pbtxt_parts
from build_scripts.new.chain import Sizes, Step, Takes
from build_scripts.new.pbtxt_parts import UNTUNED, WARM_TOKENS, Layout, Tensor, Tuning, parameter
from python_mp.sharding.families.task import Kind
from python_mp.steps.aggregation import SIMPLE, STRATEGIES

ROWS = 64
"""Of a request, and of what Triton hands over at once."""
SENTENCES = {
    "TEXT": "A sentence of the usual length, to begin with.",
    "QUERY": "How long is a sentence?",
}
FILES = {*SENTENCES, "IMAGE", "LENGTHS"}
"""Inputs that are not warmed up with zeros."""
ABOUT: Mapping[tuple[Kind, Takes], str] = {
    ("embed", "text"): "A text in, its vector out",
    ("rerank", "text"): "A query and a text in, how well they fit out",
    ("classify", "text"): "A text or a pair of texts in, its best labels out",
    ("classify", "image"): "The bytes of a JPEG or PNG file in, its best labels out",
    ("tokens", "text"): "A text in, its named spans out",
    ("generate", "text"): "A conversation or a text in, what follows it out in parts",
}
DECOUPLED = "model_transaction_policy { decoupled: true }"
LARGEST = (
    "# Of a batch, in {}: not more than the largest in recipe.toml.",
    "# Of a step, in {}: while a long prompt is read, the others wait for so many of its.",
)
TOGETHER = "# Hands everything that waits to one execute call.", "dynamic_batching {}"
ONE_BY_ONE = (
    "# No dynamic_batching: of a stream whose client has gone its queue would drop the parts, and",
    "# Triton would never let go of the request. So a part tells the decoder that he has gone.",
)
FILLED = "Rows of one request are filled up to the longest; LENGTHS says what is real."
RAGGED = "Ragged: requests of unequal length share a batch, and nothing is padded."


@dataclass(frozen=True)
class Template:
    """The models of the ensemble `name`.

    Attributes:
        about: what the encoder is, for its first line.
        most: tokens or images of a batch, where it is not the backend's own limit.
    """

    name: str
    kind: Kind
    takes: Takes
    sizes: Sizes
    layout: Layout
    about: str
    most: int | None = None
    tuning: Tuning = UNTUNED

    @property
    def steps(self) -> tuple[Step, ...]:
        return chain.steps(self.kind, self.takes, self.sizes)

    @property
    def ranked(self) -> str:
        """The job of the step that has ranks."""
        return next(step.job for step in self.steps if step.job in chain.RANKED)

    def files(self) -> dict[str, str | bytes]:
        """Configs and what warms up, by their paths in the repository."""
        found: dict[str, str | bytes] = {
            f"{self.name}/config.pbtxt": pbtxt_parts.text(self._ensemble()),
            f"{self.name}/1/.gitkeep": "",  # Triton asks an ensemble for a version, too.
        }
        for step in self.steps:
            lines = self._ranked(step) if step.job in chain.RANKED else self._step(step)
            folder = f"{self.name}_{step.job}"
            found[f"{folder}/config.pbtxt"] = pbtxt_parts.text(lines)
            for name in FILES.intersection(step.inputs) if self._warms_up else ():
                found[f"{folder}/warmup/{name.lower()}"] = _data(name)
        return found

    def _tensors(self, names: Sequence[str]) -> list[Tensor]:
        found = chain.tensors(self.kind, self.sizes)
        return [found[name] for name in names]

    def _ensemble(self) -> Iterator[str]:
        inputs, outputs = chain.ends(self.steps)
        about = f"{ABOUT[self.kind, self.takes]}: the three steps below, chained inside Triton."
        yield from pbtxt_parts.head(self.name, "platform", "ensemble", ROWS, about)
        yield from pbtxt_parts.tensors("input", self._tensors(inputs))
        yield from pbtxt_parts.tensors("output", self._tensors(outputs))
        yield from ("", "# What it does; the build makes its steps by it.")
        yield from (parameter("task", self.kind), "")
        outside = {*inputs, *outputs}
        yield from pbtxt_parts.ensemble(self._part(step, outside) for step in self.steps)

    def _part(self, step: Step, outside: set[str]) -> Iterator[str]:
        yield from (f'model_name: "{self.name}_{step.job}"', "model_version: -1")
        for key, names in (("input_map", step.inputs), ("output_map", step.outputs)):
            for name in (each for each in names if each not in chain.HIDDEN):
                value = name if name in outside else name.lower()
                yield f'{key} {{ key: "{name}" value: "{value}" }}'

    def _step(self, step: Step) -> Iterator[str]:
        inputs, outputs = self._tensors(step.inputs), self._tensors(step.outputs)
        yield from pbtxt_parts.head(f"{self.name}_{step.job}", "backend", "python", ROWS)
        yield from pbtxt_parts.tensors("input", inputs)
        yield from pbtxt_parts.tensors("output", outputs, FILLED * ("LENGTHS" in step.outputs))
        yield from ("", *(ONE_BY_ONE if step.job == "text" else TOGETHER))
        yield "instance_group [ { count: 1 kind: KIND_CPU } ]"
        if step.job == "spans":
            yield f"# What a span is made of: {', '.join(STRATEGIES)}, as transformers has them."
            yield parameter("aggregation_strategy", SIMPLE)
        if self._warms_up:
            yield from pbtxt_parts.warm_up(inputs, FILES)

    @property
    def _warms_up(self) -> bool:
        """Whether Triton does it: a decoder's ranks have a first step of their own."""
        return self.kind != "generate"

    def _ranked(self, step: Step) -> Iterator[str]:
        of_texts = self.takes == "text"
        given = self._tensors(step.inputs)
        inputs = [replace(each, is_ragged=each.dims[0] < 0) for each in given]
        model = f"{self.name}_{step.job}"
        yield from pbtxt_parts.head(model, "backend", "python_mp", ROWS, self.about)
        yield from pbtxt_parts.tensors("input", inputs, RAGGED * of_texts)
        outputs = [replace(each, is_optional=False) for each in self._tensors(step.outputs)]
        yield from pbtxt_parts.tensors("output", outputs)
        if self.kind == "generate":
            yield from ("", "# An answer comes in parts.", DECOUPLED)
            yield parameter("task", self.kind)
        yield from ("", self.tuning.batching(), "", *pbtxt_parts.instances(self.layout))
        if "LENGTHS" in step.inputs:
            yield "# The input that says how many leading elements of each row are real."
            yield parameter("lengths", "LENGTHS")
        if self.most:
            unit = "tokens" if of_texts else "images"
            yield LARGEST[self.kind == "generate"].format(unit)
            yield parameter("max_batch_tokens", self.most)
        yield from self.tuning.parameters()
        yield "# About three seconds of work: more is refused at once."
        yield parameter("max_queue_requests", 256)
        if self._warms_up:
            yield from pbtxt_parts.warm_up(inputs, FILES)


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
