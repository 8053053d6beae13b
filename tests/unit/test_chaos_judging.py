"""What the chaos program must not miss: wrong, lost, late and doubled answers, refusals out of
place. All with made-up requests."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

from clients.chaos.exchange import AnswerError, of_answer, of_error, outputs
from clients.chaos.journal import Journal, Outcome, Record
from clients.chaos.questions import Array, Exam, Question, QuestionError
from clients.chaos.verdict import GRACE_SECONDS, Committed, Verdict, judge

METADATA: dict[str, Any] = {
    "name": "squares",
    "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}],
}


def squares(question: Question) -> dict[str, Array]:
    """A model: [rows, 4] to [rows, 4]."""
    return {"Y": question.inputs["X"] ** 2}


def test_wrong_answers_are_wrong() -> None:
    exam = Exam(METADATA, tolerance=1e-3)
    exam.learn(squares)
    question = exam.question((3, 1, 4))
    y = squares(question)["Y"]
    for answer, said in (
        ({"Y": y * np.float32(1 + 1e-5)}, ""),
        ({"Y": y[[1, 0, 2]]}, "rows [0, 1] of 3 are wrong"),
        ({"Y": y * [[1], [1], [1.01]]}, "rows [2] of 3 are wrong"),
        ({"Y": y * [[1], [np.nan], [1]]}, "rows [1] of 3 are wrong"),
        ({"Y": y[:2]}, "shape [2, 4] instead of [3, 4]"),
        ({"Y": y, "Z": y}, "outputs ['Y', 'Z'] instead of ['Y']"),
    ):
        assert said in exam.mistake(question, answer)
        assert bool(exam.mistake(question, answer)) == bool(said)
        assert (of_answer(exam, question, answer)[0] is Outcome.WRONG) == bool(said)


def test_a_model_that_answers_always_the_same_is_no_test() -> None:
    with pytest.raises(QuestionError, match="squares answers the same, whatever is asked"):
        Exam(METADATA, 1e-3).learn(lambda question: {"Y": np.ones((1, 4), np.float32)})


def test_inputs_that_cannot_be_made_up_are_named() -> None:
    for kind, shape in (("INT32", [-1, 4]), ("FP32", [-1, -1]), ("BYTES", [-1, 2])):
        tensor = {"name": "X", "datatype": kind, "shape": shape}
        with pytest.raises(QuestionError, match=f"for input X of squares \\({kind}"):
            Exam({"name": "squares", "inputs": [tensor]}, 1e-3)


def numbered(identity: str) -> Any:
    said = {"id": identity, "outputs": [{"name": "Y"}]}
    return SimpleNamespace(get_response=lambda: said, as_numpy=lambda name: name)


def test_an_answer_must_carry_its_request_s_number() -> None:
    assert outputs(numbered("7"), 7) == {"Y": "Y"}
    for other in ("8", ""):
        with pytest.raises(AnswerError) as error:
            outputs(numbered(other), 7)
        assert of_error(error.value)[0] is Outcome.WRONG


def test_what_errors_mean() -> None:
    for error, outcome in (
        (InferenceServerException("queue full", "503"), Outcome.REFUSED),
        (InferenceServerException("gone", "StatusCode.UNAVAILABLE"), Outcome.REFUSED),
        (InferenceServerException("Stub process 'a' is not healthy.", "500"), Outcome.REFUSED),
        (HTTPConnectionClosed("in the middle"), Outcome.REFUSED),
        (InferenceServerException("raised", "500"), Outcome.FAILED),
        (RuntimeError("what?"), Outcome.FAILED),
        (InferenceServerException("late", "StatusCode.DEADLINE_EXCEEDED"), Outcome.HUNG),
        (TimeoutError("timed out"), Outcome.HUNG),
    ):
        assert of_error(error)[0] is outcome


def test_the_journal_misses_no_request() -> None:
    late = Journal(deadline=0.0)
    late.ended(late.sent("m", "grpc"), Outcome.RIGHT)
    assert late.counts == {Outcome.HUNG: 1}
    journal = Journal(deadline=60.0)
    answered, doubled, _lost = (journal.sent("m", "http") for _ in range(3))
    journal.ended(answered, Outcome.RIGHT)
    for _ in range(2):
        journal.ended(doubled, Outcome.RIGHT)
    journal.close()
    assert journal.counts == {Outcome.RIGHT: 2, Outcome.WRONG: 1, Outcome.HUNG: 1}
    assert [record.detail for record in journal.records] == [
        "answered twice, then right",
        "never answered",
    ]


KILL = Committed("kill", "rank 0", began=10.0, over=12.0, answers=0.5, whole=1.0)
STUB = Committed("stub", "a stub", 20.0, 24.0, may_refuse=True, answers=3.0, whole=3.5)


def record(sent: float, ended: float, outcome: Outcome) -> Record:
    return Record(1, "embed", "grpc", sent, ended, outcome, "why")


def judged(*records: Record) -> Verdict:
    return judge(records, [KILL, STUB], ["kill", "stub"])


def test_without_trouble_there_are_no_findings() -> None:
    verdict = judged(record(10.5, 11.5, Outcome.RIGHT), record(1.0, 1.1, Outcome.CANCELLED))
    assert verdict.findings == []
    kill, stub, calm = verdict.rows
    assert (kill.count, kill.answers, kill.whole, kill.slowest) == (1, [0.5], [1.0], 1.0)
    assert (stub.count, stub.answers, calm.count) == (1, [3.0], 0)


def test_a_refusal_at_its_place_is_counted_apart() -> None:
    for sent, ended in ((22.0, 22.1), (15.0, 20.1), (24.5, 24.6), (9.0, 22.0)):
        verdict = judged(record(sent, ended, Outcome.REFUSED))
        assert verdict.findings == []
        assert [row.outcomes[Outcome.REFUSED] for row in verdict.rows] == [0, 1, 0]


def test_what_nothing_excuses() -> None:
    for sent, ended, outcome, place in (
        (5.0, 5.1, Outcome.FAILED, "outside of any fault"),
        (11.0, 11.1, Outcome.WRONG, "during kill, rank 0"),
        (10.5, 10.6, Outcome.REFUSED, "during kill, rank 0"),
        (24.1 + GRACE_SECONDS, 26.0, Outcome.REFUSED, "outside of any fault"),
        (11.0, 80.0, Outcome.HUNG, "during stub, a stub"),
    ):
        found = judged(*[record(sent, ended, outcome)] * 3)
        assert found.findings == [f"3 x {outcome} at embed over grpc {place}: why"]


def test_a_fault_that_was_not_survived_or_not_committed_is_a_finding() -> None:
    never = Committed("kill", "rank 1", 1.0, 61.0)
    vain = Committed("reload", "", 1.0, 2.0, trouble="no version")
    assert sorted(judge([], [never, vain], ["kill", "reload", "freeze"]).findings) == [
        "freeze was never committed",
        "kill, rank 1: /status never said that all serves afterwards",
        "kill, rank 1: no right answer came afterwards",
        "reload: no version",
    ]


def test_a_fault_that_was_broken_off_is_no_finding_and_excuses_what_it_may() -> None:
    stub = Committed("stub", "", 1.0, math.inf, may_refuse=True, broken_off=True)
    for outcome, count in ((Outcome.REFUSED, 0), (Outcome.FAILED, 1)):
        assert len(judge([record(5.0, 6.0, outcome)], [stub], ["stub"]).findings) == count
