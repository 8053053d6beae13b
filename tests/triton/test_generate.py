"""A decoder behind Triton: streams over gRPC and HTTP, alone and as a step of an ensemble."""

import json
import os
import queue
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from python_mp.rank.engines.echo import RAISE
from python_mp.rank.engines.echo_decoder import fault_id
from server.process.launch import TritonServer
from tests.support import repository
from tests.support.calls import settled
from tests.support.processes import children, rank_processes, until
from tests.support.serving import Serve
from tests.support.streams import expected

OUTPUTS = """
  { name: "OUTPUT_IDS" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "FINISH_REASON" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "USAGE" data_type: TYPE_INT32 dims: [ 3 ] }
"""
CHAINED_OUTPUTS = """
  { name: "STREAM" data_type: TYPE_INT32 dims: [ 5 ] },
  { name: "FAILURE" data_type: TYPE_STRING dims: [ 1 ] }
"""
DECODER = f"""
backend: "python_mp"
max_batch_size: 64
model_transaction_policy {{ decoupled: true }}
input [ {{ name: "INPUT_IDS" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }} ]
output [
  {OUTPUTS}, {CHAINED_OUTPUTS}, {{ name: "LOGPROBS" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "CONTEXT_IDS" data_type: TYPE_INT32 dims: [ -1 ] }}
]
dynamic_batching {{}}
instance_group [
  {{ name: "lead" kind: KIND_CPU }}, {{ name: "shard" kind: KIND_CPU passive: true }}
]
parameters {{ key: "engine" value {{ string_value: "echo_decoder" }} }}
parameters {{ key: "task" value {{ string_value: "generate" }} }}
parameters {{ key: "tensor_parallel_size" value {{ string_value: "2" }} }}
parameters {{ key: "kv_cache_blocks" value {{ string_value: "200" }} }}
parameters {{ key: "module.step_milliseconds" value {{ string_value: "2" }} }}
"""
NAMES = ("OUTPUT_IDS", "FINISH_REASON", "USAGE")
AROUND = f"""
platform: "ensemble"
max_batch_size: 64
input [ {{ name: "INPUT_IDS" data_type: TYPE_INT32 dims: [ -1 ] }} ]
output [ {OUTPUTS} ]
ensemble_scheduling {{ step [ {{
  model_name: "decoder" model_version: -1
  input_map {{ key: "INPUT_IDS" value: "INPUT_IDS" }}
  {" ".join(f'output_map {{ key: "{name}" value: "{name}" }}' for name in NAMES)} }} ] }}
"""
SAYING = f"""
backend: "python"
max_batch_size: 64
input [ {OUTPUTS}, {CHAINED_OUTPUTS.replace("] }", "] optional: true }")} ]
output [ {{ name: "SAID" data_type: TYPE_INT32 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU }} ]
"""
SAYING_MODEL = """
import triton_python_backend_utils as pb_utils
from python_mp.front.place.presence import runtime_folder
from python_mp.model.errors import PythonMpError
from python_mp.steps import answering
from python_mp.steps.handed_on import HandedOn


class TritonPythonModel:
    def initialize(self, args):
        self.handed_on = HandedOn(runtime_folder())

    def execute(self, requests):
        return answering.each(requests, self.answer, PythonMpError)

    def answer(self, request):
        self.handed_on.look(request)
        ids = pb_utils.get_input_tensor_by_name(request, "OUTPUT_IDS").as_numpy()
        return [pb_utils.Tensor("SAID", ids)]
"""
HANDED_ON = (*NAMES, "STREAM", "FAILURE")
CHAINED = f"""
platform: "ensemble"
max_batch_size: 64
input [ {{ name: "INPUT_IDS" data_type: TYPE_INT32 dims: [ -1 ] }} ]
output [ {OUTPUTS}, {{ name: "SAID" data_type: TYPE_INT32 dims: [ -1 ] }} ]
ensemble_scheduling {{ step [ {{
  model_name: "decoder" model_version: -1
  input_map {{ key: "INPUT_IDS" value: "INPUT_IDS" }}
  {" ".join(f'output_map {{ key: "{name}" value: "{name}" }}' for name in HANDED_ON)} }}, {{
  model_name: "saying" model_version: -1
  {" ".join(f'input_map {{ key: "{name}" value: "{name}" }}' for name in HANDED_ON)}
  output_map {{ key: "SAID" value: "SAID" }} }} ] }}
"""
LIMIT = 60.0


@pytest.fixture(scope="module")
def decoder(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("decoder") / "repository"
    model = repository.add(folder, "decoder", DECODER)
    said = {"context_length": 1024, "vocabulary": 1 << 20, "eos_token_ids": [7]}
    (model / "1" / "task.json").write_text(json.dumps(said))
    repository.add(folder, "around", AROUND)
    repository.add(folder, "saying", SAYING, model=SAYING_MODEL)
    repository.add(folder, "chained", CHAINED)
    with serve(folder) as server:
        yield server


class Stream:
    """Streams of one connection; the parts come in one queue for each request."""

    def __init__(self, server: TritonServer, model: str = "decoder") -> None:
        self._client = grpc.InferenceServerClient(server.endpoints.grpc_url)
        self._model = model
        self._queues: dict[str, queue.Queue[Any]] = {}
        self._client.start_stream(self._hear)

    def _hear(self, result: Any, error: Any) -> None:
        if error:  # It does not say whose it is.
            for each in self._queues.values():
                each.put(error)
        else:
            self._queues[result.get_response().id].put(result)

    def ask(self, prompt: Sequence[int], **parameters: Any) -> str:
        number = str(len(self._queues))
        self._queues[number] = queue.Queue()
        ids = grpc.InferInput("INPUT_IDS", [1, len(prompt)], "INT32")
        ids.set_data_from_numpy(np.array([prompt], np.int32))
        self._client.async_stream_infer(
            self._model,
            [ids],
            request_id=number,
            parameters=parameters,
            enable_empty_final_response=True,
        )
        return number

    def part(self, number: str) -> Any:
        """The next one; None behind the last."""
        result = self._queues[number].get(timeout=LIMIT)
        if isinstance(result, Exception):
            raise result
        final = result.get_response().parameters["triton_final_response"].bool_param
        return None if final and not result.get_response().outputs else result

    def answer(self, number: str) -> list[int]:
        ids: list[int] = []
        while (part := self.part(number)) is not None:
            ids += part.as_numpy("OUTPUT_IDS")[0].tolist()
            if part.as_numpy("FINISH_REASON")[0, 0]:
                break
        return ids

    def close(self, *, at_once: bool = False) -> None:
        self._client.stop_stream(cancel_requests=at_once)
        self._client.close()


@pytest.fixture
def stream(decoder: TritonServer) -> Iterator[Stream]:
    made = Stream(decoder)
    yield made
    made.close()


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(count)
    return [draw.choices(range(8, 60_000), k=draw.randint(1, 60)) for _ in range(count)]


def rank(server: TritonServer) -> int:
    found = (rank_processes(stub).get((0, 1)) for stub in children(server.pid))
    return next(pid for pid in found if pid)


def used(server: TritonServer) -> float:
    return settled(server.endpoints).total("kv_blocks_used", model="decoder")


@pytest.mark.parametrize("model", ["decoder", "around", "chained"])
def test_streams_side_by_side_get_their_own_ids(decoder: TritonServer, model: str) -> None:
    made, asked = Stream(decoder, model), prompts(30)
    numbers = [made.ask(prompt, max_tokens=20) for prompt in asked]
    assert [made.answer(number) for number in numbers] == [expected(p, 20) for p in asked]
    made.close()


def test_parts_come_one_by_one(stream: Stream) -> None:
    number = stream.ask([9, 10], max_tokens=5, ignore_eos=True)
    parts = [stream.part(number) for _ in range(5)]
    assert [p.as_numpy("OUTPUT_IDS").shape for p in parts] == [(1, 1)] * 5
    assert [p.as_numpy("FINISH_REASON")[0, 0] for p in parts] == [b""] * 4 + [b"length"]
    assert parts[-1].as_numpy("USAGE").tolist() == [[2, 5, 0]]


def test_a_seed_repeats_a_draw(stream: Stream) -> None:
    drawn = [stream.ask([9], max_tokens=5, temperature="0.7", seed=3) for _ in range(2)]
    assert [stream.answer(number) for number in drawn] == [expected([9], 5, seed=3)] * 2


@pytest.mark.parametrize("model", ["decoder", "chained"])
@pytest.mark.parametrize(
    ("prompt", "parameters", "said"),
    [
        ([9], {"max_tokens": 0}, "parameter 'max_tokens' is 0; it must be a whole number, 1 to"),
        ([9] * 1000, {"max_tokens": 30}, "has 1000 tokens, with max_tokens 30 1030; the model's"),
        ([-3], {}, "holds -3"),
    ],
)
def test_what_is_wrong_is_told(
    decoder: TritonServer, model: str, prompt: list[int], parameters: dict[str, Any], said: str
) -> None:
    made = Stream(decoder, model)
    with pytest.raises(InferenceServerException, match=said):
        made.answer(made.ask(prompt, **parameters))
    made.close()


@pytest.mark.parametrize("model", ["decoder", "chained"])
def test_a_guilty_one_is_told_and_the_others_go_on(decoder: TritonServer, model: str) -> None:
    made, guilty = Stream(decoder, model), Stream(decoder, model)
    numbers = [made.ask(prompt, max_tokens=60) for prompt in prompts(8)]
    with pytest.raises(InferenceServerException, match="raised as asked"):
        guilty.answer(guilty.ask([*map(ord, model), fault_id(RAISE)]))
    assert [made.answer(number) for number in numbers] == [expected(p, 60) for p in prompts(8)]
    made.close()
    guilty.close()


def test_a_killed_rank_is_not_noticed(decoder: TritonServer, stream: Stream) -> None:
    numbers = [stream.ask(prompt, max_tokens=200, ignore_eos=True) for prompt in prompts(6)]
    first = [stream.part(number).as_numpy("OUTPUT_IDS")[0].tolist() for number in numbers]
    os.kill(rank(decoder), signal.SIGKILL)
    rest = [stream.answer(number) for number in numbers]
    wanted = [expected(prompt, 200, eos=-1) for prompt in prompts(6)]
    assert [a + b for a, b in zip(first, rest, strict=True)] == wanted


def leave_over_grpc(server: TritonServer, model: str) -> None:
    made = Stream(server, model)
    numbers = [made.ask([9, n], ignore_eos=True) for n in range(10)]
    for number in numbers:
        made.part(number)
    made.close(at_once=True)


def leave_over_http(server: TritonServer, model: str) -> None:
    url = f"http://{server.endpoints.http_url}/v2/models/{model}/generate_stream"
    for n in range(10):
        asked = {"INPUT_IDS": [9, n], "ignore_eos": True}
        with urlopen(Request(url, json.dumps(asked).encode()), timeout=LIMIT) as answer:
            answer.readline()


@pytest.mark.parametrize("leave", [leave_over_grpc, leave_over_http])
@pytest.mark.parametrize("model", ["decoder", "chained"])
def test_clients_that_go_away_free_their_blocks(
    decoder: TritonServer, model: str, leave: Callable[[TritonServer, str], None]
) -> None:
    """And nothing stays in flight: the model would not be gone."""
    before = cancelled(decoder)
    leave(decoder, model)
    until(lambda: used(decoder) == 0 and cancelled(decoder) >= before + 10)
    if model == "chained":
        decoder.control.unload(model)
        until(lambda: not any(v.is_active for v in decoder.control.index() if v.model == model))
        decoder.control.load(model)


def cancelled(server: TritonServer) -> float:
    return settled(server.endpoints).total("refused_total", model="decoder", reason="cancelled")


def test_http_streams_events(decoder: TritonServer) -> None:
    url = f"http://{decoder.endpoints.http_url}/v2/models/decoder/generate_stream"
    asked = {"INPUT_IDS": [9, 10], "max_tokens": 6, "temperature": 0.0}
    with urlopen(Request(url, json.dumps(asked).encode()), timeout=LIMIT) as answer:
        events = [json.loads(line[6:]) for line in answer if line.strip()]
    ids = [token for event in events for token in np.ravel(event["OUTPUT_IDS"]).tolist()]
    assert ids == expected([9, 10], 6)
    assert events[-1]["FINISH_REASON"] == "length"
    assert np.ravel(events[0]["CONTEXT_IDS"]).tolist() == [-1], (
        "none, in a tensor that is not empty"
    )
