"""The files that a tokenizer is made of where there is no tokenizer.json.

transformers converts them, but makes a tokenizer of nothing as well, and one of a SentencePiece
model's file that joins other pieces than the model, so that all ids would be wrong: neither is
served.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from build_scripts.errors import BuildError
from build_scripts.sentences import sentences

FILE = "tokenizer.json"
OLDER = "vocab.txt", "vocab.json", "*.model"
WHAT_ELSE = "take a checkpoint with a tokenizer.json"


def are_there(folder: Path) -> bool:
    """Whether the folder has a tokenizer at all."""
    return any(path.is_file() for name in (FILE, *OLDER) for path in folder.glob(name))


def require(folder: Path) -> None:
    """Raises BuildError where it has none."""
    if not are_there(folder):
        raise BuildError(
            f"The checkpoint {folder} has no tokenizer: neither {FILE} nor {', '.join(OLDER)}. Save"
            f" it there, too: AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r})"
        )


@contextmanager
def refused(folder: Path, what: str) -> Iterator[None]:
    """Whatever transformers raises as it loads or uses a tokenizer, as a BuildError: it comes from
    many libraries, some without a class of their own.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BuildError(
            f"transformers cannot {what} the tokenizer of {folder}: {reason}. Its files are damaged"
            " or incomplete: save it there again, by save_pretrained"
        ) from None


def check(folder: Path, theirs: Any) -> None:
    """
    Args:
        theirs: what transformers has made of the folder.

    Raises:
        BuildError: it is not what the files say, or cannot be written as a tokenizer.json.
    """
    if not theirs.is_fast:
        raise BuildError(
            f"{folder} has a {type(theirs).__name__}, which transformers runs in Python: no {FILE}"
            f" can say what it does; {WHAT_ELSE}"
        )
    if (folder / FILE).is_file():
        return
    names = [name for key, name in theirs.vocab_files_names.items() if key != "tokenizer_file"]
    for name in names:
        if not (folder / name).is_file():
            raise BuildError(
                f"{folder} has neither {FILE} nor {name}, which a {type(theirs).__name__} is made"
                f" of: add it, or {WHAT_ELSE}"
            )
    for path in folder.glob("*.model"):
        _compare(path, theirs)


def _compare(path: Path, theirs: Any) -> None:
    """By small English words, which no family changes before the model gets them."""
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(str(path))
    except Exception as error:
        raise BuildError(f"SentencePiece cannot read {path}: {error}") from None
    for sentence in sentences(40):
        text = " ".join(re.findall("[a-z]+", sentence.lower()))
        wanted = [
            theirs.unk_token if model.is_unknown(model.piece_to_id(piece)) else piece
            for piece in model.encode(text, out_type=str)
        ]
        found = theirs.backend_tokenizer.encode(text, add_special_tokens=False).tokens
        if found != wanted:
            raise BuildError(
                f"transformers reads {path} as SentencePiece does not: {text[:40]!r} becomes"
                f" {found[:8]}, and should be {wanted[:8]}. Say in tokenizer_config.json what it is"
                f" (tokenizer_class), or {WHAT_ELSE}"
            )
