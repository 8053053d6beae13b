"""Checkpoints of tiny random models with a head, as users have them: weights, tokenizer or image
processor in a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.checkpoints import CHAIN, word_piece, write_json
from tests.support.families import FAMILIES, TEXT

WORD_PIECES = {"bert", "distilbert", "electra"}
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "ODD-ONE")
VISION_PARTS = {"siglip": "SiglipConfig", "clip": "CLIPConfig"}
"""Which classify with a config of both their parts."""
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
MOST = 40
"""Tokens of a text."""
TEXTS = (
    "the cab faced a bad sea .",
    "a",
    "Éa \U0001f600 THE\u0301 cab \U00010348 b. c",
    "  the   [SEP] abcs ",
    "\u200b \ufb01ne \u6771\u4eac the",
    "bad " * 60,
)
"""Short and cut, of more than one plane of Unicode, with what a tokenizer lowers or drops."""


def folder(path: Path, name: str, task: str, labels: int = len(LABELS), **values: Any) -> Path:
    """Writes the family's checkpoint for the task; `values` of its config.json differ."""
    kind, given = FAMILIES[name], {**FAMILIES[name].values, **values}
    if task != "embed":
        kind = kind.with_head("tokens" if task == "tokens" else "classify")
        given = {**kind.values, "id2label": dict(enumerate(LABELS[:labels])), **values}
        given.pop("num_labels")
    if not kind.takes_images:
        made = _words() if name in WORD_PIECES else byte_pairs()
        given |= {"vocab_size": 400, "max_position_embeddings": MOST + 4}
        given |= {"pad_token_id": made.pad_token_id}
        made.save_pretrained(path)
    if name in VISION_PARTS and task != "embed":
        given.pop("pad_token_id")
        part = {"vision_config": {**FAMILIES[name].values}, "text_config": dict(TEXT)}
        given = {**part, "id2label": given["id2label"]}
        kind = replace(kind, config=VISION_PARTS[name])
    replace(kind, values=given).make().save_pretrained(path)
    if kind.takes_images:
        write_json(path / "preprocessor_config.json", PROCESSOR)
    return path


def chained(path: Path, mode: str) -> Path:
    """Makes a sentence-transformers folder of it, with this pooling, of length 1."""
    write_json(path / "modules.json", CHAIN)
    said = {"embedding_dimension": TEXT["hidden_size"], "pooling_mode": mode}
    write_json(path / "1_Pooling/config.json", said)
    return path


def _words() -> Any:
    """It lowers, and tells the parts of a pair apart."""
    from transformers import BertTokenizer

    made = word_piece()
    made.no_padding()
    return BertTokenizer(tokenizer_object=made, do_lower_case=True, model_max_length=MOST)


def byte_pairs() -> Any:
    """Byte pairs, as RoBERTa's; it knows no parts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=MOST,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )
