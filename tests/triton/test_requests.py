"""What becomes of single requests behind Triton: poison, cancelled, late, too many."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from python_mp.rank.engines.echo import EXIT, RAISE, REFUSE, SLEEP
from server.process.launch import TritonServer
from tests.support.harness import NO_FAULT, Fault, until
from tests.support.serving import Serve
from tests.triton import repository
from tests.triton.calls import PROTOCOLS, Client, in_parallel, settled

ECHO = """
backend: "python_mp"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] },
        { name: "FAULT" data_type: TYPE_INT32 dims: [ 3 ] } ]
output [ { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] } ]
dynamic_batching {}
instance_group [ { name: "lead" kind: KIND_CPU }, { name: "shard" kind: KIND_CPU passive: true } ]
parameters { key: "engine" value { string_value: "echo" } }
parameters { key: "tensor_parallel_size" value { string_value: "2" } }
parameters { key: "max_batch_tokens" value { string_value: "4" } }
parameters { key: "max_queue_requests" value { string_value: "20" } }
"""
AROUND = """
platform: "ensemble"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] },
        { name: "FAULT" data_type: TYPE_INT32 dims: [ 3 ] } ]
output [ { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] } ]
ensemble_scheduling { step [ {
  model_name: "echo" model_version: -1
  input_map { key: "X" value: "X" } input_map { key: "FAULT" value: "FAULT" }
  output_map { key: "Y" value: "Y" } } ] }
"""
BUSY_SECONDS = 1.0


@pytest.fixture(scope="module")
def echo(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("echo") / "repository"
    repository.add(folder, "echo", ECHO)
    repository.add(folder, "around", AROUND)
    wide = ECHO.replace("max_batch_size: 4", "max_batch_size: 64").replace('"20"', '"1000"')
    repository.add(folder, "wide", wide)
    with serve(folder) as server:
        yield server


def inputs(number: int, fault: Fault = NO_FAULT) -> list[Any]:
    tensors = []
    for name, row in (("X", [number]), ("FAULT", fault)):
        tensors.append(grpc.InferInput(name, [1, len(row)], "INT32"))
        tensors[-1].set_data_from_numpy(np.array([row], np.int32))
    return tensors


class Answers:
    """Requests sent without waiting; number -> when it came and what: a value or an error."""

    def __init__(self, server: TritonServer, model: str = "echo") -> None:
        self._client = grpc.InferenceServerClient(server.endpoints.grpc_url)
        self._model = model
        self._began = time.monotonic()
        self.came: dict[int, tuple[float, Any]] = {}

    def ask(self, number: int, fault: Fault = NO_FAULT, **more: Any) -> Any:
        book = partial(self._book, number)
        return self._client.async_infer(self._model, inputs(number, fault), book, **more)

    def occupy(self) -> None:
        """The ranks, for BUSY_SECONDS."""
        self.ask(0, (SLEEP, 0, round(BUSY_SECONDS * 1000)))
        time.sleep(0.1)

    def wait(self, count: int) -> None:
        until(lambda: len(self.came) == count)
        self._client.close()

    def status(self, number: int) -> str:
        error = self.came[number][1]
        assert isinstance(error, InferenceServerException), f"{number} was answered with {error}"
        return str(error.status()).removeprefix("StatusCode.")

    def value(self, number: int) -> int:
        answer = self.came[number][1]
        assert not isinstance(answer, Exception), f"{number} failed: {answer}"
        return int(answer)

    def _book(self, number: int, result: Any, error: Any) -> None:
        answer = error if error is not None else result.as_numpy("Y")[0, 0]
        self.came[number] = time.monotonic() - self._began, answer


def counted(server: TritonServer, name: str, **labels: str) -> float:
    return settled(server.endpoints).total(name, model="echo", **labels)


@pytest.mark.parametrize(
    ("fault", "text"),
    [((EXIT, 1, 0), "rank 1 exited with 0"), ((RAISE, 0, 5), "RuntimeError: raised as asked (5)")],
)
def test_one_poison_among_good_ones_fails_alone(
    echo: TritonServer, fault: Fault, text: str
) -> None:
    before = counted(echo, "restarts_total")
    sent = threading.Barrier(9)

    def good(client: int) -> int:
        right = 0
        with grpc.InferenceServerClient(echo.endpoints.grpc_url) as connection:
            for number in range(100):
                answer = connection.infer("echo", inputs(client * 1000 + number))
                right += answer.as_numpy("Y").tolist() == [[client * 1000 + number]]
                if number == 20:
                    sent.wait(30)
        return right

    def bad(_: int) -> int:
        sent.wait(30)
        with (
            grpc.InferenceServerClient(echo.endpoints.grpc_url) as connection,
            pytest.raises(InferenceServerException) as refused,
        ):
            connection.infer("echo", inputs(-1, fault))
        assert text in str(refused.value)
        assert refused.value.status() == "StatusCode.INTERNAL"
        return 100

    assert in_parallel(9, lambda n: bad(n) if n == 8 else good(n)) == [100] * 9
    assert counted(echo, "restarts_total") - before <= 2


def test_cancelled_requests_cost_nothing(echo: TritonServer) -> None:
    before = counted(echo, "requests_total")
    answers = Answers(echo)
    answers.occupy()
    calls = {number: answers.ask(number) for number in range(1, 11)}
    time.sleep(0.1)
    for number in range(1, 11, 2):
        calls[number].cancel()
    answers.wait(11)
    assert [answers.value(number) for number in range(2, 11, 2)] == [2, 4, 6, 8, 10]
    assert {answers.status(number) for number in range(1, 11, 2)} == {"CANCELLED"}
    assert counted(echo, "requests_total") - before == 6
    assert counted(echo, "refused_total", reason="cancelled") == 5


@pytest.mark.parametrize("model", ["echo", "around"])
def test_a_request_leaves_at_its_time_out(echo: TritonServer, model: str) -> None:
    """Also inside an ensemble, which hands the time-out on."""
    before = counted(echo, "requests_total")
    answers = Answers(echo, model)
    answers.occupy()
    answers.ask(1, timeout=200_000)
    answers.ask(2, timeout=10_000_000)
    answers.wait(3)
    assert answers.status(1) == "UNAVAILABLE"
    assert answers.came[1][0] < 0.8 * BUSY_SECONDS
    assert answers.value(2) == 2
    assert counted(echo, "requests_total") - before == 2


def test_a_full_queue_refuses_at_once(echo: TritonServer) -> None:
    answers = Answers(echo)
    answers.occupy()
    for number in range(1, 61):
        answers.ask(number)
    answers.wait(61)
    refused = [n for n in range(1, 61) if isinstance(answers.came[n][1], Exception)]
    assert len(refused) == 40
    assert {answers.status(number) for number in refused} == {"UNAVAILABLE"}
    assert all(answers.came[number][0] < 0.8 * BUSY_SECONDS for number in refused)
    assert all(answers.value(n) == n for n in range(1, 61) if n not in refused)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_requests_larger_than_a_batch_get_their_own_answers(
    echo: TritonServer, protocol: str
) -> None:
    """Of 1 to 64 rows, four rows a batch; one in nine is refused for one row of it."""

    def ask(number: int) -> None:
        number += 1
        count = number * 7 % 64 + 1
        x = np.arange(number * 1000, number * 1000 + count, dtype=np.int32)[:, None]
        fault = np.zeros((count, 3), np.int32)
        fault[count // 2, 0] = REFUSE * (number % 9 == 0)
        with Client(echo.endpoints, protocol) as client:
            if number % 9:
                assert np.array_equal(client.ask("wide", "Y", X=x, FAULT=fault), x)
            else:
                with pytest.raises(InferenceServerException, match="refused as asked"):
                    client.ask("wide", "Y", X=x, FAULT=fault)

    in_parallel(24, ask)
    metrics = settled(echo.endpoints)
    assert metrics.total("restarts_total", model="wide") == 0
    assert metrics.total("tokens_total", model="wide") <= 4 * metrics.total(
        "batches_total", model="wide"
    )
