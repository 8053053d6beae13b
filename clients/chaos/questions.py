"""What is asked, and what a right answer is: the one that the server gave in calm."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ask = Callable[["Question"], Mapping[str, Array]]
POOL, STREAMS = 32, 12  # rows that are told apart; of answers that take long
PROMPT = 24  # tokens
LONG = 8  # as much in one
MOST_ROWS = 4  # of a request
_NOUNS = ["river", "engine", "letter", "garden", "window", "market", "doctor", "winter", "mirror"]
_VERBS = ["keeps", "follows", "breaks", "remembers", "paints", "sells", "crosses", "forgets"]
_TAILS = ["", "in the rain", "without a word, as it had every evening of that long year", "twice"]


class QuestionError(Exception):
    """The model cannot be asked, or answers nothing that can be compared; one sentence."""


@dataclass(frozen=True)
class Question:
    """`rows` are indices into the model's pool, `inputs` arrays [len(rows), ...] by name. An answer
    that comes in parts is one to a single row; `parameters` go with the request."""

    model: str
    rows: tuple[int, ...]
    inputs: Mapping[str, Array]
    streams: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Exam:
    """A model's questions and their right answers.

    Args:
        metadata: Triton's, with a first dimension of -1 (the batch) in every shape; `streams` says
            that answers come in parts.
        tolerance: how far a row may be from the right one, relative to the model's longest row.
        tokens: of an answer that comes in parts.

    Raises:
        QuestionError: an input is neither text nor numbers of fixed dimensions.
    """

    def __init__(
        self, metadata: Mapping[str, Any], tolerance: float, seed: int = 0, tokens: int = 32
    ) -> None:
        self.model: str = metadata["name"]
        self._tolerance = tolerance
        self.streams = bool(metadata.get("streams"))
        self._parameters = {"max_tokens": tokens, "ignore_eos": True} if self.streams else {}
        self._rows = STREAMS if self.streams else POOL
        numbers = np.random.default_rng(seed)
        self._pool = {
            tensor["name"]: _generate(self.model, tensor, numbers) for tensor in metadata["inputs"]
        }
        self._right: dict[str, Array] = {}

    def learn(self, ask: Ask) -> None:
        """Ask for each row alone, one after the other. To be done in calm.

        Raises:
            QuestionError: rows that cannot be told apart would hide an answer in wrong order.
        """
        answers = [ask(self.question((row,))) for row in range(self._rows)]
        for name in answers[0]:
            try:
                self._right[name] = np.concatenate([answer[name] for answer in answers])
            except ValueError as error:
                raise QuestionError(f"{self.model}: the shape of {name} varies") from error
        if not any(_are_distinct(right, self._tolerance) for right in self._right.values()):
            raise QuestionError(f"{self.model} answers the same, whatever is asked")

    def draw(self, order: random.Random, most: int = MOST_ROWS) -> Question:
        """A question of 1 to `most` rows, all different."""
        count = 1 if self.streams else order.randint(1, most)
        return self.question(tuple(order.sample(range(self._rows), count)))

    def question(self, rows: tuple[int, ...]) -> Question:
        inputs = {name: pool[list(rows)] for name, pool in self._pool.items()}
        return Question(self.model, rows, inputs, self.streams, self._parameters)

    def long(self, number: int) -> Question:
        """A prompt that nobody else has, to be answered by one token."""
        rows = np.arange(LONG) * POOL * POOL + number * POOL
        inputs = {
            name: np.array([[" ".join(map(_sentence, rows.tolist())).encode()]], np.object_)
            if pool.dtype.kind == "O"
            else np.random.default_rng(number).integers(8, 200, (1, LONG * PROMPT), np.int32)
            for name, pool in self._pool.items()
        }
        return Question(self.model, (), inputs, True, self._parameters | {"max_tokens": 1})

    def mistake(self, question: Question, answer: Mapping[str, Array]) -> str:
        """What is wrong with the answer; nothing if it is right."""
        if answer.keys() != self._right.keys():
            return f"outputs {sorted(answer)} instead of {sorted(self._right)}"
        for name, right in self._right.items():
            expected, got = right[list(question.rows)], answer[name]
            if got.shape != expected.shape:
                return f"{name} of shape {[*got.shape]} instead of {[*expected.shape]}"
            far = distances(got, expected) > self._tolerance * _longest(right)
            if far.any():
                return f"{name}: rows {np.flatnonzero(far).tolist()} of {len(far)} are wrong"
        return ""


def draw(exams: Sequence[Exam], order: random.Random) -> tuple[Exam, Question]:
    """A question of some exam."""
    exam = order.choice(exams)
    return exam, exam.draw(order)


def distances(a: Array, b: Array) -> Array:
    """Euclidean ones between the rows of two arrays of the same shape; of bytes and whole numbers,
    how many elements differ. Not a number counts as infinitely far."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if a.dtype.kind != "f":
        differing: Array = (a != b).sum(1).astype(np.float64)
        return differing
    apart = np.linalg.norm(a.astype(np.float64) - b, axis=1)
    far: Array = np.nan_to_num(apart, nan=np.inf)
    return far


def _longest(rows: Array) -> float:
    """The norm of the longest row; 1 where rows are equal or not."""
    return float(distances(rows, np.zeros_like(rows)).max()) if rows.dtype.kind == "f" else 1.0


def _are_distinct(rows: Array, tolerance: float) -> bool:
    """Whether nearly all pairs of rows are farther apart than two right answers could be."""
    least = 2 * tolerance * _longest(rows)
    pairs = [distances(rows, np.roll(rows, by, 0)) > least for by in range(1, len(rows))]
    return bool(np.mean(pairs) > 0.9)


def _generate(model: str, tensor: Mapping[str, Any], numbers: np.random.Generator) -> Array:
    """POOL rows for an input."""
    name, kind, dims = tensor["name"], tensor["datatype"], [int(dim) for dim in tensor["shape"]]
    if kind == "BYTES" and dims == [-1, 1]:
        return np.array([[_sentence(row).encode()] for row in range(POOL)], np.object_)
    if kind == "INT32" and dims == [-1, -1]:  # of a decoder
        return numbers.integers(8, 200, (POOL, PROMPT), np.int32)
    if kind == "FP32" and dims[0] == -1 and min(dims[1:], default=1) > 0:
        return numbers.standard_normal((POOL, *dims[1:]), np.float32)
    raise QuestionError(
        f"nothing can be made up for input {name} of {model} ({kind} {dims}); name models with"
        " --model that take one text, ids of a decoder, or FP32 of fixed dimensions"
    )


def _sentence(row: int) -> str:
    """A text of its own for each row, of 4 to 15 words."""
    order = random.Random(row)
    noun, verb, other = order.choice(_NOUNS), order.choice(_VERBS), order.choice(_NOUNS)
    return f"The {noun} {verb} {other} {row} {order.choice(_TAILS)}".strip()
