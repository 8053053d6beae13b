"""Fronts, and one of a Triton for all tests that do them no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

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


@dataclass
class Fronted:
    """A Triton of MODELS, which are echoes, and its front."""

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
    with command(folder / "repository") as triton:
        triton.wait_ready()
        with new_front(folder / "front", **behind(triton.endpoints)) as started:
            both = Fronted(started, triton)
            before = both.processes()
            assert len(before) == 1 + len(MODELS)
            yield both
            assert triton.answers(model="wide")
            assert both.processes() == before
            assert started.process.poll() is None
