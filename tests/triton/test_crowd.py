"""A crowd behind Triton: good, refused and cancelled requests over both protocols, while ranks are
killed. Every answer is compared with the one that its question got alone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pytest
import tritonclient.grpc.aio as aio
from PIL import Image
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from server.endpoints import Endpoints
from server.process.installation import PROJECT
from server.process.launch import TritonServer
from tests.support.harness import children, rank_processes
from tests.support.serving import Serve
from tests.triton.calls import Array, Client, text_tensor

IN_FLIGHT, HTTP_CLIENTS = 64, 4
BAD, CANCELLED = 1 / 8, 1 / 16
QUESTIONS = 48
KILL_SECONDS = 1.5


@dataclass(frozen=True)
class Question:
    """`right` is what it was answered alone; `bad` is one like it that must be refused."""

    model: str
    input: str
    output: str
    good: Array
    bad: Array
    right: Array | None = None

    def is_answered(self, answer: Array) -> bool:
        if self.right is None or answer.shape != self.right.shape:
            return False
        if answer.dtype.kind == "O":
            return bool((answer == self.right).all())
        return bool(np.allclose(answer, self.right, rtol=0, atol=5e-5))


def ranker(number: int) -> Question:
    numbers = np.random.default_rng(number)
    good = numbers.standard_normal((1 + number % 3, 256), np.float32)
    bad = good.copy()
    bad[-1, number] = np.nan
    return Question("ranker", "FEATURES", "SCORE", good, bad)


def embed(number: int) -> Question:
    words = ["river", "engine", "letter", "garden", "window", "market", "doctor"]
    text = f"{number} " + " ".join(random.Random(number).choices(words, k=1 + number % 30))
    return Question(
        "embed", "TEXT", "EMBEDDING", text_tensor([text]), text_tensor([text.encode() + b"\xff"])
    )


def classify(number: int) -> Question:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image = np.array([[file.getvalue()]], np.object_)
    cut = np.array([[file.getvalue()[: 20 + number]]], np.object_)
    return Question("classify", "IMAGE", "SCORE", image, cut)


@pytest.fixture(scope="module")
def crowded(serve: Serve) -> Iterator[TritonServer]:
    """A server of these tests' own, since they kill its ranks."""
    with serve(PROJECT / "model_repository") as ready:
        yield ready


def learned(server: TritonServer, kinds: Sequence[str]) -> list[Question]:
    """Questions with the answers that each gets alone."""
    made = [globals()[kind](number) for kind in kinds for number in range(QUESTIONS)]
    with Client(server.endpoints) as client:
        return [
            Question(
                **vars(q) | {"right": client.ask(q.model, q.output, **{q.input: q.good})},
            )
            for q in made
        ]


class Crowd:
    """Counts what becomes of `wanted` good requests, and of what is sent among them."""

    def __init__(self, endpoints: Endpoints, questions: list[Question], wanted: int) -> None:
        self.counts: Counter[str] = Counter()
        self._endpoints, self._questions = endpoints, questions
        self._left = iter(range(wanted))
        self._lock = threading.Lock()

    def __call__(self) -> Counter[str]:
        with ThreadPoolExecutor(HTTP_CLIENTS + 1) as pool:
            over_http = [pool.submit(self._over_http, seed) for seed in range(HTTP_CLIENTS)]
            pool.submit(lambda: asyncio.run(self._over_grpc())).result()
            for each in over_http:
                each.result()
        return self.counts

    def _draw(self, order: random.Random) -> tuple[Question, str] | None:
        kind = order.choices(["good", "bad", "cancelled"], [1 - BAD - CANCELLED, BAD, CANCELLED])[0]
        with self._lock:
            if kind == "good" and next(self._left, None) is None:
                return None
        return order.choice(self._questions), kind

    def _book(self, question: Question, kind: str, answer: Array | str) -> None:
        if isinstance(answer, str):
            refused = kind == "bad" and answer.startswith(("400", "StatusCode.INVALID_ARGUMENT"))
            outcome = "refused" if refused else f"{kind} {question.model}: {answer}"
        elif kind == "bad":
            outcome = f"{question.model} answered bad input"
        else:
            outcome = kind if question.is_answered(answer) else f"{question.model} wrong"
        with self._lock:
            self.counts[outcome] += 1

    def _over_http(self, seed: int) -> None:
        order = random.Random(seed)
        with Client(self._endpoints, "http") as client:
            while (drawn := self._draw(order)) is not None:
                question, kind = drawn
                if kind == "cancelled":
                    continue
                tensor = question.bad if kind == "bad" else question.good
                try:
                    asked = {question.input: tensor}
                    self._book(question, kind, client.ask(question.model, question.output, **asked))
                except InferenceServerException as error:
                    self._book(question, kind, f"{error.status()} {error.message()}")

    async def _over_grpc(self) -> None:
        async with aio.InferenceServerClient(self._endpoints.grpc_url) as client:
            await asyncio.gather(*(self._one(client, 100 + n) for n in range(IN_FLIGHT)))

    async def _one(self, client: aio.InferenceServerClient, seed: int) -> None:
        order = random.Random(seed)
        while (drawn := self._draw(order)) is not None:
            question, kind = drawn
            array = question.bad if kind == "bad" else question.good
            tensor = aio.InferInput(question.input, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            call = asyncio.ensure_future(client.infer(question.model, [tensor]))
            if kind == "cancelled":
                await asyncio.sleep(order.random() * 0.02)
                call.cancel()
            try:
                self._book(question, kind, (await call).as_numpy(question.output))
            except asyncio.CancelledError:
                with self._lock:
                    self.counts["cancelled"] += 1
            except InferenceServerException as error:
                self._book(question, kind, f"{error.status()} {error.message()}")


class Killer(threading.Thread):
    """SIGKILL to some rank of the server, now and then, as long as the context is open."""

    def __init__(self, server: TritonServer) -> None:
        super().__init__()
        self.kills = 0
        self._server, self._order, self._over = server, random.Random(0), threading.Event()

    def run(self) -> None:
        while not self._over.wait(KILL_SECONDS):
            stubs = children(self._server.pid)
            if ranks := [pid for stub in stubs for pid in rank_processes(stub).values()]:
                os.kill(self._order.choice(ranks), signal.SIGKILL)
                self.kills += 1

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def assert_right(counts: Counter[str], wanted: int) -> None:
    """All good ones answered as alone; what is bad refused, and nothing else happened."""
    assert set(counts) <= {"good", "refused", "cancelled"}, counts
    assert counts["good"] == wanted
    assert counts["refused"] > wanted * BAD / 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "wanted", [2_000, pytest.param(20_000, marks=pytest.mark.campaign)], ids=["short", "long"]
)
def test_answers_in_a_crowd_of_one_model_are_those_got_alone(
    crowded: TritonServer, wanted: int
) -> None:
    crowd = Crowd(crowded.endpoints, learned(crowded, ["ranker"]), wanted)
    assert_right(crowd(), wanted)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "wanted", [1_500, pytest.param(10_000, marks=pytest.mark.campaign)], ids=["short", "long"]
)
def test_answers_are_right_while_ranks_are_killed(crowded: TritonServer, wanted: int) -> None:
    crowd = Crowd(crowded.endpoints, learned(crowded, ["ranker", "embed", "classify"]), wanted)
    with Killer(crowded) as killer:
        counts = crowd()
    assert_right(counts, wanted)
    assert killer.kills
