"""The models of a task's ensemble, and the tensors that they hand on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from build_scripts import decoder_checkpoint
from build_scripts.new.pbtxt_parts import Tensor
from python_mp.sharding.families.task import OUTPUTS, Kind

Takes = Literal["text", "image"]
ENCODER = "encoder"
RANKED = ENCODER, "decoder"
"""Jobs of steps that have ranks."""
OPTIONAL = {"PROMPT", "DIMENSIONS", "TOP_K", "TEXT_PAIR", "MESSAGES", "STREAM", "FAILURE"}


@dataclass(frozen=True)
class Step:
    """One model of the ensemble NAME, called NAME_`job`."""

    job: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Sizes:
    """What tensors follow from.

    Attributes:
        width: of the vector or the logits that the encoder gives.
        image: channels, height and width, of a model of images.
        has_types: whether pairs of texts are told apart by TOKEN_TYPE_IDS.
    """

    width: int
    image: tuple[int, int, int] = (0, 0, 0)
    has_types: bool = False


IDS = "INPUT_IDS", "LENGTHS"
PART = "OUTPUT_IDS", "CONTEXT_IDS", "FINISH_REASON", "TRIM"
ENDS: Mapping[tuple[Kind, Takes], tuple[Step, Step]] = {
    ("embed", "text"): (
        Step("tokenizer", ("TEXT", "PROMPT"), IDS),
        Step("vectors", ("SENTENCE_EMBEDDING", "DIMENSIONS"), ("EMBEDDING",)),
    ),
    ("rerank", "text"): (
        Step("tokenizer", ("QUERY", "TEXT"), IDS),
        Step("scores", ("LOGITS",), ("SCORE",)),
    ),
    ("classify", "text"): (
        Step("tokenizer", ("TEXT", "TEXT_PAIR"), IDS),
        Step("labels", ("LOGITS", "TOP_K"), ("LABEL", "SCORE")),
    ),
    ("classify", "image"): (
        Step("images", ("IMAGE",), ("PIXEL_VALUES",)),
        Step("labels", ("LOGITS", "TOP_K"), ("LABEL", "SCORE")),
    ),
    ("tokens", "text"): (
        Step("tokenizer", ("TEXT",), (*IDS, "OFFSETS", "CONTINUES")),
        Step("spans", ("LOGITS", "OFFSETS", "CONTINUES", "LENGTHS"), ("SPAN", "LABEL", "SCORE")),
    ),
    ("generate", "text"): (
        Step("prompt", ("MESSAGES", "TEXT"), ("INPUT_IDS",)),
        Step("text", (*PART, "STREAM", "FAILURE"), ("ANSWER",)),
    ),
}
"""What runs before and after the encoder."""
NOT_FOR_THE_ENCODER = {"OFFSETS", "CONTINUES"}
SHOWN = {"OUTPUT_IDS", "FINISH_REASON"}
"""Of what steps hand on, what clients get as well."""
HIDDEN = {"LOGPROBS", "TOP_IDS", "TOP_LOGPROBS"}
"""What not every answer has: an ensemble would wait for it."""


def steps(kind: Kind, takes: Takes, sizes: Sizes) -> tuple[Step, Step, Step]:
    """In the order in which they run."""
    first, last = ENDS[kind, takes]
    if sizes.has_types:
        first = replace(first, outputs=(*first.outputs, "TOKEN_TYPE_IDS"))
    if kind == "generate":
        return first, Step("decoder", first.outputs, tuple(decoder_checkpoint.OUTPUTS)), last
    given = tuple(name for name in first.outputs if name not in NOT_FOR_THE_ENCODER)
    return first, Step(ENCODER, given, (OUTPUTS[kind],)), last


def tensors(kind: Kind, sizes: Sizes) -> dict[str, Tensor]:
    """All that may stand in the configs of the task, by name."""
    by_token = kind == "tokens"
    found = {
        **dict.fromkeys(("TEXT", "TEXT_PAIR", "QUERY", "PROMPT", "IMAGE"), ("STRING", (1,))),
        **dict.fromkeys(("LENGTHS", "TOP_K", "DIMENSIONS"), ("INT32", (1,))),
        **dict.fromkeys(("INPUT_IDS", "TOKEN_TYPE_IDS", "CONTINUES"), ("INT32", (-1,))),
        "OFFSETS": ("INT32", (-1, 2)),
        "PIXEL_VALUES": ("FP32", sizes.image),
        "SENTENCE_EMBEDDING": ("FP32", (sizes.width,)),
        "LOGITS": ("FP32", (-1, sizes.width) if by_token else (sizes.width,)),
        "EMBEDDING": ("FP32", (sizes.width,)),
        "SCORE": ("FP32", (1,) if kind == "rerank" else (-1,)),
        "LABEL": ("STRING", (-1,)),
        "SPAN": ("INT32", (-1, 2)),
        "MESSAGES": ("STRING", (1,)),
        "ANSWER": ("STRING", (1,)),
        **(decoder_checkpoint.OUTPUTS if kind == "generate" else {}),
    }
    optional = OPTIONAL | ({"TEXT"} if kind == "generate" else set())
    return {
        name: Tensor(name, f"TYPE_{kind}", dims, is_optional=name in optional)
        for name, (kind, dims) in found.items()
    }


def ends(found: Iterable[Step]) -> tuple[list[str], list[str]]:
    """What clients send, and what they get."""
    made = {name for step in found for name in step.outputs}
    read = {name for step in found for name in step.inputs} - SHOWN
    inputs = [name for step in found for name in step.inputs if name not in made]
    outputs = [name for step in found for name in step.outputs if name not in read | HIDDEN]
    return inputs, outputs
