"""Stop strings, against a plain search in all of the text."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from python_mp.front.schedule.stop_strings import StopStrings

ALPHABET = ["a", "b", "ab", "ba", "aab", " ", " a", "b ", "\n", "a\n", *"Ã©", "Ãī", "âĤ", "¬"]
"""Byte-level, so that tokens end within characters: é is two bytes, the euro sign three."""
TOKENIZER = Tokenizer(
    models.BPE(
        {
            text.replace(" ", "Ġ").replace("\n", "Ċ"): at
            for at, text in enumerate(dict.fromkeys(ALPHABET))
        },
        [],
    )
)
TOKENIZER.decoder = decoders.ByteLevel()
TOKENIZER.add_special_tokens(["<|end|>"])
IDS = st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=14)
STOPS = st.lists(
    st.text(st.sampled_from("ab \né€"), min_size=1, max_size=4), min_size=1, max_size=3
)


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids))


def first_match(ids: list[int], stops: list[str]) -> tuple[int, int] | None:
    """After how many tokens a stop is complete, and where it begins in the text."""
    for count in range(1, len(ids) + 1):
        text = decode(ids[:count])
        if text.endswith("\ufffd"):
            continue
        starts = [at for stop in stops if (at := text.find(stop)) >= 0]
        if starts:
            return count, min(starts)
    return None


@given(IDS, STOPS)
def test_what_is_shown_ends_where_the_stop_begins(ids: list[int], stops: list[str]) -> None:
    strings, match, shown = StopStrings(stops, decode), first_match(ids, stops), 0
    for count, token in enumerate(ids, 1):
        found = strings.add(token)
        if match is None or count < match[0]:
            assert not found
            assert shown <= strings.clear <= count, "what was shown stays so"
            shown = strings.clear
            continue
        text = decode(ids[:count])
        assert text[: len(text) - found] == text[: match[1]]
        assert len(decode(ids[:shown])) <= match[1], "none of it was shown"
        return
    assert match is None


@given(IDS, STOPS)
def test_nothing_is_held_that_cannot_begin_a_stop(ids: list[int], stops: list[str]) -> None:
    strings = StopStrings(stops, decode)
    for count, token in enumerate(ids, 1):
        if strings.add(token):
            return
        text = decode(ids[:count])
        begins = any(text.endswith(stop[:n]) for stop in stops for n in range(1, len(stop)))
        assert strings.clear == count or begins or text.endswith("\ufffd")


def test_bytes_that_never_make_a_character_are_shown_in_the_end() -> None:
    half = next(at for at in range(len(ALPHABET)) if decode([at]) == "\ufffd")
    strings = StopStrings(["stop"], decode)
    for _ in range(20):
        assert not strings.add(half)
    assert strings.clear >= 12


def test_tokens_without_text_are_shown_at_once_and_cost_no_more_the_more_there_are() -> None:
    """As of a model that is told to go on behind its end."""
    end, most = TOKENIZER.token_to_id("<|end|>"), 0

    def counted(ids: list[int]) -> str:
        nonlocal most
        most = max(most, len(ids))
        return decode(ids)

    strings = StopStrings(["stop"], counted)
    for count in range(1, 101):
        assert not strings.add(end)
        assert strings.clear == count
    assert most < 20
