"""What becomes of single requests behind Triton: poison, cancelled, late, too many."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from python_mp.rank.engines.echo import EXIT, RAISE, REFUSE, SLEEP
from server.process.launch import TritonServer
from tests.support import repository
from tests.support.calls import PROTOCOLS, Client, in_background, in_parallel, scrape, settled
from tests.support.processes import until
from tests.support.replicas import NO_FAULT, Fault
from tests.support.repository import with_parameters
from tests.support.serving import Serve

FAULT_INPUT = '{ name: "FAULT" data_type: TYPE_INT32 dims: [ 3 ] }'
ECHO = repository.ECHO.replace("[ 2 ]", "[ 1 ]").replace("max_batch_size: 8", "max_batch_size: 4")
ECHO = ECHO.replace(" ]\noutput", f", {FAULT_INPUT} ]\noutput")
LIMITED = {"max_batch_tokens": 4, "max_queue_requests": 20}
AROUND = f"""
platform: "ensemble"
max_batch_size: 4
input [ {{ name: "X" data_type: TYPE_INT32 dims: [ 1 ] }}, {FAULT_INPUT} ]
output [ {{ name: "Y" data_type: TYPE_INT32 dims: [ 1 ] }} ]
ensemble_scheduling {{ step [ {{
  model_name: "echo" model_version: -1
  input_map {{ key: "X" value: "X" }} input_map {{ key: "FAULT" value: "FAULT" }}
  output_map {{ key: "Y" value: "Y" }} }} ] }}
"""
BUSY_SECONDS = 5.0
SOON = 2.5  # of them are left when the first of two events was waited for


@pytest.fixture(scope="module")
def echo(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("echo") / "repository"
    repository.add(folder, "echo", with_parameters(ECHO, LIMITED))
    repository.add(folder, "around", AROUND)
    wide = ECHO.replace("max_batch_size: 4", "max_batch_size: 64")
    repository.add(folder, "wide", with_parameters(wide, {"max_batch_tokens": 4}))
    with serve(folder) as server:
        yield server


def total(server: TritonServer, name: str, **labels: str) -> float:
    return settled(server.endpoints).total(name, model="echo", **labels)


class Asked(Future[int]):
    """A request that was sent without waiting."""

    def __init__(self, client: Any, number: int, fault: Fault = NO_FAULT, **more: Any) -> None:
        super().__init__()
        tensors = []
        for name, row in (("X", [number]), ("FAULT", fault)):
            tensors.append(grpc.InferInput(name, [1, len(row)], "INT32"))
            tensors[-1].set_data_from_numpy(np.array([row], np.int32))
        self.call = client.async_infer(more.pop("model", "echo"), tensors, self._done, **more)

    def _done(self, result: Any, error: Exception | None) -> None:
        self.set_exception(error) if error else self.set_result(int(result.as_numpy("Y")[0, 0]))

    def status(self, seconds: float = 30.0) -> str:
        """That of its refusal, which comes within that time."""
        error = self.exception(seconds)
        assert isinstance(error, InferenceServerException), f"it was answered with {self.result()}"
        return str(error.status()).removeprefix("StatusCode.")


@pytest.fixture
def client(echo: TritonServer) -> Iterator[Any]:
    with grpc.InferenceServerClient(echo.endpoints.grpc_url) as made:
        yield made


def occupy(server: TritonServer, client: Any) -> tuple[Asked, float]:
    """The ranks, for BUSY_SECONDS; returns when they have it in hand, and what they had had."""
    assert Asked(client, 5).result(30) == 5
    before = total(server, "queue_seconds_count")
    sleeps = Asked(client, 0, (SLEEP, 0, round(BUSY_SECONDS * 1000)))
    until(lambda: scrape(server.endpoints).total("queue_seconds_count", model="echo") > before)
    return sleeps, before


@pytest.mark.parametrize(
    ("fault", "text"),
    [((EXIT, 1, 0), "rank 1 exited with 0"), ((RAISE, 0, 5), "RuntimeError: raised as asked (5)")],
)
def test_one_poison_among_good_ones_fails_alone(
    echo: TritonServer, client: Any, fault: Fault, text: str
) -> None:
    before = total(echo, "restarts_total")
    sent = threading.Barrier(9)

    def good(index: int) -> int:
        right = 0
        with grpc.InferenceServerClient(echo.endpoints.grpc_url) as connection:
            for number in range(index * 1000, index * 1000 + 50):
                right += Asked(connection, number).result(60) == number
                if number % 1000 == 20:
                    sent.wait(60)
        return right

    load = in_background(lambda: in_parallel(8, good))
    sent.wait(60)
    bad = Asked(client, -1, fault)
    assert bad.status(60) == "INTERNAL"
    assert text in str(bad.exception())
    assert load.result(60) == [50] * 8
    assert total(echo, "restarts_total") - before <= 2


def test_cancelled_requests_cost_nothing(echo: TritonServer, client: Any) -> None:
    _, before = occupy(echo, client)
    asked = {number: Asked(client, number) for number in range(1, 11)}
    until(lambda: scrape(echo.endpoints).total("queue_requests", model="echo") == 10)
    for number in range(1, 11, 2):
        asked[number].call.cancel()
    assert {asked[number].status() for number in range(1, 11, 2)} == {"CANCELLED"}
    assert [asked[number].result(30) for number in range(2, 11, 2)] == [2, 4, 6, 8, 10]
    assert total(echo, "queue_seconds_count") - before == 1 + 5
    assert total(echo, "refused_total", reason="cancelled") == 5


@pytest.mark.parametrize("model", ["echo", "around"])
def test_a_request_leaves_at_its_time_out(echo: TritonServer, client: Any, model: str) -> None:
    """Also inside an ensemble, which hands the time-out on."""
    sleeps, _ = occupy(echo, client)
    late = Asked(client, 1, model=model, timeout=200_000)
    patient = Asked(client, 2, model=model, timeout=20_000_000)
    assert late.status(SOON) == "UNAVAILABLE"
    assert not sleeps.done()
    assert patient.result(30) == 2


def test_a_full_queue_refuses_at_once(echo: TritonServer, client: Any) -> None:
    sleeps, _ = occupy(echo, client)
    asked = {number: Asked(client, number) for number in range(1, 61)}
    until(lambda: sum(each.done() for each in asked.values()) == 40, SOON)
    assert not sleeps.done()
    refused = {number for number, each in asked.items() if each.done()}
    assert {asked[number].status() for number in refused} == {"UNAVAILABLE"}
    assert all(asked[number].result(30) == number for number in asked.keys() - refused)


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
    rows, batches = (metrics.total(f"{n}_total", model="wide") for n in ("tokens", "batches"))
    assert rows <= 4 * batches
