"""A Triton with small models behind a front, and whether it is still the same one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc

from server.watch import stubs
from tests.deploy.front import Front, behind, front
from tests.support import python_models
from tests.support.command import Command, command
from tests.support.python_models import CONFIG, ECHO

SEQUENCE = """
sequence_batching {
  control_input [
    { name: "ID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
"""
MODELS = {
    "wide": CONFIG.format("FP32", -1),
    "fixed": CONFIG.format("FP32", 1),
    "text": CONFIG.format("STRING", -1),
    "sequence": CONFIG.format("FP32", 1) + SEQUENCE,
    "empty": CONFIG.format("FP32", -1),
}
EMPTY = ECHO.replace('Tensor("OUT", value)', 'Tensor("OUT", value[:, :0])')


@dataclass
class Fronted:
    front: Front
    triton: Command

    def processes(self) -> set[int]:
        """tritonserver and its stubs."""
        return {self.triton.triton, *(stub.pid for stub in stubs.living(self.triton.triton))}

    def echoes(self, model: str = "wide") -> bool:
        """Whether it answers, over gRPC and straight: with what it was asked."""
        row = np.array([[4.5]], np.float32)
        tensor = tritonclient.grpc.InferInput("IN", [1, 1], "FP32")
        tensor.set_data_from_numpy(row)
        url = self.triton.endpoints.grpc_url
        with tritonclient.grpc.InferenceServerClient(url) as client:
            return bool(client.infer(model, [tensor]).as_numpy("OUT") == row)


@contextmanager
def fronted(nginx: str, folder: Path, **environment: str) -> Iterator[Fronted]:
    """Both, ready; at the end the processes are those of the beginning."""
    for name, config in MODELS.items():
        source = EMPTY if name == "empty" else ECHO
        python_models.add(folder / "repository", name, source, config)
    with command(folder / "repository") as triton:
        triton.wait_ready()
        environment = behind(triton.endpoints) | environment
        with front(nginx, folder / "front", **environment) as started:
            both = Fronted(started, triton)
            before = both.processes()
            assert len(before) == 1 + len(MODELS)
            yield both
            assert both.echoes()
            assert both.processes() == before
            assert started.process.poll() is None
