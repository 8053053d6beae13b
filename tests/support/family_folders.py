"""Checkpoints of tiny random models as users have them: a folder with weights, tokenizer or image
processor, and what sentence-transformers says beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.checkpoints import WORDS, write_json
from tests.support.families import FAMILIES, Family

LONGEST = 64


def folder(path: Path, name: str, task: str = "embed", *, labels: int = 5, **files: Any) -> Path:
    """Writes the family's checkpoint for a task.

    Args:
        files: more of the folder's files, by their names, as JSON.
    """
    family = FAMILIES[name]
    if family.takes_images or task != "embed":
        family = with_labels(family.with_head("tokens" if task == "tokens" else "classify"), labels)
    family.make().save_pretrained(path)
    if family.takes_images:
        _image_processor().save_pretrained(path)
    else:
        _tokenizer().save_pretrained(path)
    for file, value in files.items():
        write_json(path / file, value)
    return path


def with_labels(family: Family, labels: int) -> Family:
    values = {**family.values, "num_labels": labels}
    return Family(family.model, family.config, values, family.exact)


def pooled(mode: str, width: int = 48) -> dict[str, Any]:
    """Files of a sentence-transformers folder with this pooling, of length 1."""
    package = "sentence_transformers.models."
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    return {
        "modules.json": [
            {"idx": index, "name": str(index), "path": place, "type": f"{package}{kind}"}
            for index, (place, kind) in enumerate(kinds.items())
        ],
        "1_Pooling/config.json": {"embedding_dimension": width, "pooling_mode": mode},
        "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
    }


def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    from tests.support.checkpoints import word_piece

    names = ("pad", "unk", "cls", "sep", "mask")
    marks = {f"{name}_token": f"[{name.upper()}]" for name in names}
    made = word_piece(WORDS)
    made.no_padding()
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LONGEST, **marks)


def _image_processor() -> Any:
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 32, "width": 32})
