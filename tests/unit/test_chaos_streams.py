"""Answers in parts, as chaos joins and judges them."""

from contextlib import ExitStack
from itertools import pairwise
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clients.chaos import next_token
from clients.chaos.next_token import Streams, Struck, Waits
from clients.chaos.questions import Exam, Question
from clients.chaos.streams import joined

METADATA = {
    "name": "talk",
    "streams": True,
    "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [-1, 1]}],
}


def answer(question: Question) -> dict[str, np.ndarray]:
    said = b"said " + question.inputs["TEXT"].item()
    cut = len(said) // 2
    parts = [np.array([[part]], np.object_) for part in (said[:cut], b"", said[cut:])]
    return joined({"ANSWER": part, "OUTPUT_IDS": np.zeros((1, 1))} for part in parts)


def test_a_text_that_lacks_or_doubles_a_part_is_wrong() -> None:
    exam = Exam(METADATA, 1e-3, tokens=9)
    exam.learn(answer)
    question = exam.question((3,))
    assert question.streams
    assert question.parameters == {"max_tokens": 9, "ignore_eos": True}
    right = answer(question)
    assert exam.mistake(question, right) == ""
    whole = right["ANSWER"].item()
    for wrong in (whole[:-1], whole + b" ", whole[:4] + whole, b""):
        assert "wrong" in exam.mistake(question, {"ANSWER": np.array([[wrong]], np.object_)})


def test_ids_are_joined() -> None:
    parts = [{"OUTPUT_IDS": np.array([ids])} for ids in ([1], [2, 3], [4])]
    assert joined(iter(parts))["OUTPUT_IDS"].tolist() == [[1, 2, 3, 4]]


TOKENS = st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True).map(sorted)


@given(streams=st.lists(TOKENS, max_size=4), death=st.integers(1, 99))
def test_pauses_are_the_longest_since_a_rank_died(streams: list[list[int]], death: int) -> None:
    """Of the streams that had begun, which have as many tokens as were heard of them."""
    running, moments = Streams(), {(at, n) for n, times in enumerate(streams) for at in times}
    with ExitStack() as stack, patch.object(next_token.time, "monotonic") as clock:
        heard = [stack.enter_context(running.one()) for _ in streams]
        for at, number in sorted(moments | {(death + 0.5, -1)}):
            clock.return_value = at
            if number < 0:
                running.strike()
            else:
                heard[number](streams[number].index(at) + 1)
    (struck,) = running.struck
    begun = {n: times for n, times in enumerate(streams) if times[0] <= death}
    assert struck.tokens == sum(sum(at <= death for at in times) for times in begun.values())
    for number, times in begun.items():
        after = [death + 0.5, *(at for at in times if at > death)]
        assert struck.pauses[number] == max((b - a for a, b in pairwise(after)), default=0)
    assert struck.pauses.keys() == begun.keys()
    assert running.begun == len(streams)


def test_a_stream_may_wait_for_a_start_and_what_is_in_hand() -> None:
    waits = Waits(100.0, [Struck(0.0, 300, {1: 5.0, 2: 0.0}), Struck(9.0, 0, {3: 0.0})])
    assert waits.findings() == []
    assert "under streams: 1; next token of 1 streams after 5.00 s (median)" in waits.told()
    assert "5.00 s of 5.10 s = 1.5 s + 1.2 x 300 tokens in hand / 100 prefilled" in waits.told()
    late = Waits(100.0, [Struck(0.0, 300, {1: 5.2})]).findings()
    assert late[0].startswith("a stream waited 5.20 s for its next token, which may take 5.10 s")
