"""Tokenizers in the files of older checkpoints become one that gives AutoTokenizer's ids, and those
of SentencePiece's models its pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoTokenizer

from build_scripts import checkpoint_tokenizer
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.sentences import sentences
from tests.support.checkpoints import CONFIG, WORDS, write_json
from tests.unit.test_tokenizer_kinds import roberta

Write = Callable[[Path], None]
TEXTS = [*sentences(12), "Grüße, a\tb  c", "the [SEP] cab </s>"]
IDS = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
DEBERTA = IDS | {
    "pad_piece": "[PAD]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    "unk_piece": "[UNK]",
}
NAMED = {"tokenizer_class": "LlamaTokenizer"}


def trained(name: str, **said: Any) -> Write:
    """A model of SentencePiece."""

    def write(folder: Path) -> None:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(40)),
            model_prefix=str(folder / "made"),
            vocab_size=360,
            hard_vocab_limit=False,
            minloglevel=2,
            **said,
        )
        (folder / "made.model").rename(folder / name)

    return write


def words(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")


def merges(folder: Path) -> None:
    roberta().model.save(str(folder))


KINDS: Mapping[str, tuple[str, Write, Mapping[str, Any]]] = {
    "vocab.txt": ("bert", words, {}),
    "vocab.txt as it is": ("electra", words, {"do_lower_case": False}),
    "merges.txt": ("roberta", merges, {}),
    "merges.txt without ends": ("qwen2", merges, {}),
    "T5": ("t5", trained("spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1), {}),
    "XLM-R": ("xlm-roberta", trained("sentencepiece.bpe.model"), {}),
    "DeBERTa": ("deberta-v2", trained("spm.model", **DEBERTA), {}),
    "Llama": ("llama", trained("tokenizer.model", model_type="bpe", byte_fallback=True), NAMED),
}


def folder(path: Path, model_type: str, write: Write, said: Mapping[str, Any]) -> Path:
    sizes = {**CONFIG, "model_type": model_type, "vocab_size": 512, "max_position_embeddings": 64}
    write_json(path / "config.json", sizes)
    write(path)
    if said:
        write_json(path / "tokenizer_config.json", said)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_ids_are_those_of_transformers_and_pieces_those_of_the_model(
    tmp_path: Path, name: str
) -> None:
    path = folder(tmp_path, *KINDS[name])
    ours = checkpoint_tokenizer.load(Checkpoint(path, "embed"))
    theirs = AutoTokenizer.from_pretrained(path)
    for text in TEXTS:
        wanted = theirs(text, truncation=True, max_length=ours.truncation["max_length"])
        assert ours.encode(text).ids == wanted["input_ids"]
    for file in path.glob("*.model"):
        model = SentencePieceProcessor(str(file))
        for text in ("the value of an object", "x"):
            found = ours.encode(text, add_special_tokens=False).tokens
            assert found == model.encode(text, out_type=str)


NOT_SERVED: Mapping[str, tuple[str, Write, Mapping[str, Any], str]] = {
    "nothing": ("bert", lambda _: None, {}, "neither tokenizer.json nor vocab.txt, vocab.json"),
    "half": ("gpt2", lambda path: (merges(path), (path / "merges.txt").unlink())[0], {}, "merges"),
    "of another": ("bert", merges, {}, "neither tokenizer.json nor vocab.txt, which a BertTok"),
    "read otherwise": (
        "llama",
        trained("tokenizer.model", model_type="bpe", byte_fallback=True),
        {},
        "as SentencePiece does not: .* and should be .* Say in tokenizer_config.json",
    ),
    "in Python": (
        "bert",
        words,
        {"tokenizer_class": "BertweetTokenizer"},
        "BertweetTokenizer|transformers cannot load",
    ),
}


@pytest.mark.parametrize("name", NOT_SERVED)
def test_what_is_missing_or_read_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    model_type, write, said, sentence = NOT_SERVED[name]
    path = folder(tmp_path, model_type, write, said)
    with pytest.raises(BuildError, match=sentence) as error:
        checkpoint_tokenizer.load(Checkpoint(path, "embed"))
    assert re.search(str(path), str(error.value))
    assert json.loads((path / "config.json").read_text())["model_type"] == model_type
