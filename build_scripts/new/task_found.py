"""Which task a checkpoint's folder is for, and how that is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build_scripts.errors import BuildError
from build_scripts.storage import read_optional
from python_mp.sharding.families.task import Kind

SENTENCES, CHAIN = "config_sentence_transformers.json", "modules.json"
TEXTS, TOKENS, IMAGES = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForImageClassification",
)
GENERATING = "ForCausalLM", "LMHeadModel"
OF_TWO_PARTS = "ForConditionalGeneration", "ForSeq2SeqLM"
BARE = ("Model", "ForMaskedLM", "ForPreTraining", "PreTrainedModel")
ENDING: Mapping[Kind, tuple[str, ...]] = {
    "rerank": (TEXTS,),
    "classify": (TEXTS, IMAGES),
    "tokens": (TOKENS,),
    "generate": GENERATING,
}
MEAN = "the mean over the tokens is assumed, as sentence-transformers does"


def find(
    folder: Path, config: Mapping[str, Any], labels: int, wanted: Kind | None
) -> tuple[Kind, str]:
    """The task, and why.

    Args:
        labels: of the checkpoint's classes.
        wanted: what the user has asked for.

    Raises:
        BuildError: the checkpoint is for none, or has no head for the one that is wanted.
    """
    names = [str(name) for name in config.get("architectures") or ()]
    if wanted is None:
        return _by_folder(folder, names, labels)
    if wanted == "embed" and any(name.endswith(IMAGES) for name in names):
        raise BuildError(
            f"{folder} is a {_named(names)}, and embed is of texts: take --task classify"
        )
    if wanted == "embed":
        return wanted, _pooling(folder, "it was asked for")
    if not any(name.endswith(ENDING[wanted]) for name in names):
        raise BuildError(
            f"{folder} is a {_named(names)}, which has no weights for the task {wanted}: take a"
            f" checkpoint that was trained as {' or '.join(ENDING[wanted])}, or --task embed"
        )
    if wanted == "rerank" and labels != 1:
        raise BuildError(
            f"{folder} gives {labels} classes, and rerank has one score: take --task classify"
        )
    return wanted, "it was asked for"


def _by_folder(folder: Path, names: list[str], labels: int) -> tuple[Kind, str]:
    said = read_optional(folder / SENTENCES)
    classes = f"{labels} class{'es' if labels != 1 else ''}"
    if said.get("model_type") == "CrossEncoder":
        return ("rerank" if labels == 1 else "classify"), f"a CrossEncoder of {classes}"
    for file in (CHAIN, SENTENCES):
        if (folder / file).is_file():
            return "embed", f"{file} is there"
    for name in names:
        if name.endswith(TEXTS):
            return ("rerank" if labels == 1 else "classify"), f"{name} of {classes}"
        if name.endswith(IMAGES):
            return "classify", f"{name} of {classes}"
        if name.endswith(TOKENS):
            return "tokens", f"{name} of {classes}"
        if name.endswith(GENERATING):
            return "generate", name
    return "embed", _pooling(folder, _bare(folder, names))


def _bare(folder: Path, names: list[str]) -> str:
    for name in names:
        if name.endswith(OF_TWO_PARTS):
            raise BuildError(
                f"{folder} is a {name}, an encoder and a decoder, which do not generate text here:"
                " --task embed serves vectors of the encoder's hidden states"
            )
        if not name.endswith(BARE):
            raise BuildError(
                f"{folder} is a {name}, for which there is no task; there are"
                f" {', '.join(('embed', *ENDING))}: --task embed serves vectors of its hidden"
                " states"
            )
    return f"{_named(names)} has no head of its own"


def _pooling(folder: Path, why: str) -> str:
    is_said = (folder / CHAIN).is_file() or any(folder.glob("*_Pooling/config.json"))
    return why if is_said else f"{why}; {MEAN}"


def _named(names: list[str]) -> str:
    return ", ".join(names) or "model without architectures"
