"""Fronts, and one of a Triton for all tests that do them no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from server.watch import stubs
from tests.deploy.front import Front, behind, front
from tests.support import python_models
from tests.support.command import Command, command
from tests.support.programs import Program
from tests.support.python_models import CONFIG, ECHO

NewFront = Callable[..., AbstractContextManager[Front]]
SEQUENCE = """
sequence_batching {
  control_input [
    { name: "ID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
"""
# A part for each number. After the first it waits for the folder `gate`, and says in it when it was
# cancelled; `whole` is one part, `endless` the first one for ever.
PARTS = """
import json, pathlib, threading, time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=answer, args=(request,), daemon=True).start()


def answer(request):
    sender = request.get_response_sender()
    settings = json.loads(request.parameters() or "{}")
    values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().reshape(-1)
    while "endless" in settings and not sender.is_cancelled():
        send(sender, values[:1])
        time.sleep(0.02)
    for count, value in enumerate([] if "whole" in settings else values):
        gate = pathlib.Path(settings.get("gate", ""))
        while count == 1 and "gate" in settings and not (gate / "open").exists():
            if sender.is_cancelled():
                (gate / "cancelled").touch()
                break
            time.sleep(0.01)
        send(sender, value.reshape(1))
    if "whole" in settings:
        send(sender, values[:1])
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def send(sender, value):
    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value.reshape(1, 1))]))
"""
MODELS = {
    "wide": CONFIG.format("FP32", -1),
    "text": CONFIG.format("STRING", -1),
    "sequence": CONFIG.format("FP32", 1) + SEQUENCE,
}


@pytest.fixture(scope="session")
def new_front(program: Program) -> NewFront:
    """`with new_front(folder, UPSTREAM=...) as front:` nginx with this environment."""
    program("openssl")
    return partial(front, program("nginx"))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A folder for the model `parts`."""
    folder = tmp_path / "gate"
    folder.mkdir()
    return folder


@dataclass
class Fronted:
    """A Triton of MODELS, which are echoes, and `parts`, and its front."""

    front: Front
    triton: Command

    def processes(self) -> set[int]:
        """tritonserver and its stubs."""
        return {self.triton.triton, *(stub.pid for stub in stubs.living(self.triton.triton))}


@pytest.fixture(scope="session")
def both(new_front: NewFront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    """At the end its processes are those of the beginning."""
    folder = tmp_path_factory.mktemp("front")
    for name, config in MODELS.items():
        python_models.add(folder / "repository", name, ECHO, config)
    decoupled = CONFIG.format("FP32", -1) + "model_transaction_policy { decoupled: true }"
    python_models.add(folder / "repository", "parts", PARTS, decoupled)
    with command(folder / "repository") as triton:
        triton.wait_ready()
        with new_front(folder / "front", **behind(triton.endpoints)) as started:
            both = Fronted(started, triton)
            before = both.processes()
            assert len(before) == 2 + len(MODELS)
            yield both
            assert triton.answers(model="wide")
            assert both.processes() == before
            assert started.process.poll() is None
