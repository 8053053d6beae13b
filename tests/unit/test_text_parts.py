"""Parts of an answer join to the text of all its tokens, wherever it is cut."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from build_scripts.sentences import sentences
from python_mp.steps.text_parts import CONTEXT, TextParts
from tests.support.checkpoints import word_piece
from tests.unit.test_tokenizer_kinds import byte_level, unigram

TEXTS = [*sentences(60), "don't stop, he said. Grüße 中文 日本語 \U0001f600 é"]


def with_decoder(tokenizer: Tokenizer, decoder: decoders.Decoder | None) -> Tokenizer:
    if decoder:
        tokenizer.decoder = decoder
    return tokenizer


def llama() -> Tokenizer:
    """As of Llama 2: bytes where no token is known, and no space before the first word."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    special = ["<unk>", "<s>", "</s>", *bytes_]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, limit_alphabet=40, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain = Tokenizer(plain.model)  # Bytes are no special tokens.
    plain.pre_tokenizer = tokenizer.pre_tokenizer
    plain.add_special_tokens(["<s>", "</s>"])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return with_decoder(plain, decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)]))


def clip() -> Tokenizer:
    """As of CLIP and GPT: an end is written behind each word."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return with_decoder(tokenizer, decoders.BPEDecoder("</w>"))


def qwen() -> Tokenizer:
    """With added tokens, one that is no special one."""
    tokenizer = byte_level("<s>", "</s>")
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("中文", special=False)])
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": qwen,
    "byte fallback": llama,
    "metaspace": lambda: with_decoder(unigram(), decoders.Metaspace()),
    "word pieces": lambda: with_decoder(word_piece(), decoders.WordPiece()),
    "ends of words": clip,
    "no decoder": word_piece,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return MAKERS[request.param]()


def parts_of(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    """As the decoder cuts an answer, one part after another, each with up to CONTEXT ids."""
    parts = TextParts(tokenizer)
    ends = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    found = [
        parts.text(
            ids[max(start - CONTEXT, 0) : start] or [-1], ids[start:end], is_last=end == len(ids)
        )
        for start, end in pairwise(ends)
    ]
    return found or [parts.text([], [], is_last=True)]


def whole(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of all ids. Where there are bytes among tokens, tokenizers shows all of a run as
    broken for the sake of one; here only what is broken is."""
    text = tokenizer.decode(ids)
    if "ByteFallback" not in str(tokenizer.decoder) or "\ufffd" not in text:
        return text
    raw = b""
    for token in filter(None, (tokenizer.id_to_token(each) for each in ids if each not in (1, 2))):
        found = re.fullmatch("<0x(..)>", token)
        raw += bytes.fromhex(found[1]) if found else token.replace("▁", " ").encode()
    return raw.removeprefix(b" ").decode(errors="replace")


def telling(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Without special tokens, of which nothing is shown, where there are so many in a row that a
    part is not told what stands before them."""
    hidden = {n for n, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    crowded = any(
        len([n for n in ids[at : at + CONTEXT] if n in hidden]) > 4 for at in range(len(ids))
    )
    return [each for each in ids if each not in hidden] if crowded else ids


CUTS = st.lists(st.integers(0, 60), max_size=60)


def test_a_first_byte_that_is_a_space() -> None:
    tokenizer = llama()
    space = tokenizer.token_to_id("<0x20>")
    for ids in ([space], [space, space], [space, tokenizer.token_to_id("<0xC3>")]):
        assert "".join(parts_of(tokenizer, ids, [1])) == whole(tokenizer, ids)


@given(data=st.data(), cuts=CUTS)
@settings(max_examples=60, deadline=None)
def test_any_tokens(tokenizer: Tokenizer, data: st.DataObject, cuts: list[int]) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 2), max_size=40))
    ids = telling(tokenizer, ids)
    assert "".join(parts_of(tokenizer, ids, cuts)) == whole(tokenizer, ids)


@given(data=st.data(), cuts=CUTS, size=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_of_a_text_nothing_is_shown_broken_but_its_end(
    tokenizer: Tokenizer, data: st.DataObject, cuts: list[int], size: int
) -> None:
    text = data.draw(st.text(max_size=20) | st.sampled_from(TEXTS))
    ids = telling(tokenizer, tokenizer.encode(text.replace("\ufffd", "")).ids[:size])
    *before, last = parts_of(tokenizer, ids, cuts)
    assert "".join([*before, last]) == whole(tokenizer, ids)
    assert "\ufffd" not in "".join(before)


def test_characters_come_as_soon_as_they_are_whole() -> None:
    tokenizer = qwen()
    ids = tokenizer.encode("a \U0001f600 é").ids
    found = parts_of(tokenizer, ids, list(range(60)))
    assert [each for each in found if each] == ["a", " ", "\U0001f600", " ", "é"]
