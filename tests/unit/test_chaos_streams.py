"""Answers in parts, as chaos joins and judges them."""

import numpy as np

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
