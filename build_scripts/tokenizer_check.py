"""Whether the tokenizer that is served gives transformers' ids, and ids that the model knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.sentences import sentences
from build_scripts.tokenizer_files import FILE, refused

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

PROBES = (
    "Grüße aus ÎLE-DE-FRANCE, Σίσυφος, ΟΔΟΣ, İstanbul",
    "中文 日本語 한국어 العربية עברית ไทย",
    "\u2603 \U0001f600 \ue000 \U000f0000 \u0301 \u200b\u00ad\ufffd",
    "a\tb\nc\r\n  d\u00a0e\0f",
    "   ",
    "x" * 300,
    "don't re-enter http://example.org/a?b=c&d=[e] 3.14 1,000",
)
"""Beside sentences: case, accents, scripts, characters that nobody knows, spaces, a long word."""


def compare(checkpoint: Checkpoint, ours: Tokenizer, theirs: Any, limit: int) -> None:
    """Texts and pairs of them, as the task takes them.

    Args:
        theirs: transformers' tokenizer, asked to cut at `limit` what is no prompt.

    Raises:
        BuildError: the two differ, or the model does not know an id.
    """
    special = [f"a {token} b" for token in theirs.all_special_tokens]
    texts, cuts = _probes(special), checkpoint.task != "generate"
    pairs = zip(texts[::-1], texts, strict=True) if checkpoint.takes_pairs else ()
    alone = () if checkpoint.task == "rerank" else ((text, None) for text in texts)
    for text, second in (*alone, *pairs):
        name = f"The tokenizer of {checkpoint.path}"
        found = _encoded(name, ours, text, second)
        with refused(checkpoint.path, "use"):
            made = theirs(text, second, truncation=cuts, max_length=limit)
        known = None if {text, second} & set(special) else checkpoint.architecture.vocab_size
        _require_same(name, found, made, is_pair=second is not None, known=known)


def _encoded(name: str, ours: Tokenizer, text: str, second: str | None) -> Encoding:
    try:
        return ours.encode(text, second)
    except Exception as error:
        raise BuildError(
            f"{name} fails at {text[:40]!r} ({error}): its vocabulary must have the token for what"
            " it does not know."
        ) from None


def _require_same(
    name: str, found: Encoding, made: Mapping[str, list[int]], *, is_pair: bool, known: int | None
) -> None:
    """
    Args:
        made: of the same text, or pair, by transformers.
        known: tokens that the model knows; None where others may come.
    """
    if found.ids != made["input_ids"]:
        raise BuildError(
            f"{name} does what no {FILE} can say: for {found.tokens[:12]} transformers gives the"
            f" ids {made['input_ids'][:12]}, the file {found.ids[:12]}. Look for what"
            " tokenizer_config.json says beyond it."
        )
    if known is not None and max(found.ids, default=0) >= known:
        raise BuildError(
            f"{name} gives the id {max(found.ids)}, but the model knows {known} tokens"
            " (vocab_size): they are not of one checkpoint."
        )
    segments = made.get("token_type_ids", [])
    if not found.ids or (segments != found.type_ids if is_pair and segments else any(segments)):
        raise BuildError(
            f"{name} gives {found.tokens[:12]} the ids {found.ids[:12]} of the segments"
            f" {found.type_ids[:12]}; the encoder needs some, all of segment 0 unless they are of a"
            " pair."
        )


def _probes(special: Iterable[str]) -> list[str]:
    return [*PROBES, *special, *sentences(100)]
