"""A crowd behind Triton: good, refused and cancelled requests over both protocols, while ranks are
killed. Every answer is compared with the one that its question got alone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as grpc
import tritonclient.http.aio as http
from PIL import Image
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from server.endpoints import Endpoints
from server.process.launch import TritonServer
from tests.support import repository
from tests.support.calls import Array, Client, settled, text_tensor
from tests.support.processes import children, rank_processes
from tests.support.serving import Serve

GRPC_CLIENTS, HTTP_CLIENTS = 60, 8
SHARES = {"good": 13 / 16, "bad": 1 / 8, "cancelled": 1 / 16}
QUESTIONS = 48
KILL_SECONDS = 0.7
EMBED = ("embed", "embed_tokenizer", "embed_encoder", "embed_vectors")
CLASSIFY = ("classify", "classifier", "classify_decoder", "classify_labels")
RANKS = 6  # of classifier, embed_encoder and ranker


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
def crowded(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of these tests' own, since they kill its ranks."""
    models = tmp_path_factory.mktemp("crowd") / "models"
    repository.copy(models, *EMBED, *CLASSIFY, "ranker")
    with serve(models) as ready:
        yield ready


def learned(server: TritonServer) -> list[Question]:
    """Questions with the answers that each gets alone."""
    made = [kind(number) for kind in (ranker, embed, classify) for number in range(QUESTIONS)]
    with Client(server.endpoints) as client:
        return [
            replace(each, right=client.ask(each.model, each.output, **{each.input: each.good}))
            for each in made
        ]


class Crowd:
    """Counts what becomes of `wanted` good requests, and of what is sent among them."""

    def __init__(self, endpoints: Endpoints, questions: list[Question], wanted: int) -> None:
        self.counts: Counter[str] = Counter()
        self._endpoints, self._questions = endpoints, questions
        self._left = iter(range(wanted))

    async def run(self) -> Counter[str]:
        async with (
            grpc.InferenceServerClient(self._endpoints.grpc_url) as over_grpc,
            http.InferenceServerClient(self._endpoints.http_url, conn_timeout=60) as over_http,
        ):
            await asyncio.gather(
                *(self._client(grpc, over_grpc, seed) for seed in range(GRPC_CLIENTS)),
                *(self._client(http, over_http, 100 + seed) for seed in range(HTTP_CLIENTS)),
            )
        return self.counts

    async def _client(self, module: Any, client: Any, seed: int) -> None:
        order = random.Random(seed)
        while True:
            [kind] = order.choices(*zip(*SHARES.items(), strict=True))
            if kind == "good" and next(self._left, None) is None:
                return
            question = order.choice(self._questions)
            array = question.bad if kind == "bad" else question.good
            tensor = module.InferInput(question.input, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            call = asyncio.ensure_future(client.infer(question.model, [tensor]))
            if kind == "cancelled":
                await asyncio.sleep(order.random() * 0.02)
                call.cancel()
            self.counts[await self._outcome(question, kind, call)] += 1

    async def _outcome(self, question: Question, kind: str, call: asyncio.Future[Any]) -> str:
        try:
            answer = (await call).as_numpy(question.output)
        except asyncio.CancelledError:
            return "cancelled"
        except InferenceServerException as error:
            said = f"{error.status()} {error.message()}"
            refused = kind == "bad" and said.startswith(("400", "StatusCode.INVALID_ARGUMENT"))
            return "refused" if refused else f"{kind} {question.model}: {said}"
        if kind == "bad":
            return f"{question.model} answered bad input"
        return kind if question.is_answered(answer) else f"{question.model} wrong"


@contextmanager
def killer(server: TritonServer) -> Iterator[list[int]]:
    """SIGKILL to some rank of the server, now and then, and once SIGSTOP; whom."""
    killed: list[int] = []
    order, over = random.Random(0), threading.Event()

    def run() -> None:
        while not over.wait(KILL_SECONDS):
            stubs = children(server.pid)
            if ranks := [pid for stub in stubs for pid in rank_processes(stub).values()]:
                killed.append(order.choice(ranks))
                os.kill(killed[-1], signal.SIGSTOP if len(killed) == 1 else signal.SIGKILL)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def assert_right(counts: Counter[str], wanted: int) -> None:
    """All good ones answered as alone; what is bad refused, and nothing else happened."""
    assert set(counts) <= {"good", "refused", "cancelled"}, counts
    assert counts["good"] == wanted
    assert counts["refused"] > wanted * SHARES["bad"] / 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "wanted", [800, pytest.param(10_000, marks=pytest.mark.campaign)], ids=["short", "long"]
)
def test_answers_are_right_while_ranks_are_killed(crowded: TritonServer, wanted: int) -> None:
    crowd = Crowd(crowded.endpoints, learned(crowded), wanted)
    stubs = children(crowded.pid)
    with killer(crowded) as killed:
        counts = asyncio.run(crowd.run())
    assert_right(counts, wanted)
    assert killed
    assert children(crowded.pid) == stubs
    settled(crowded.endpoints, lambda now: now.total("ranks_alive") == RANKS)
