"""Many requests, some of them in flight at a time, answered in their order."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from clients.connection import LOST, MODULES, Protocol, connect, default_url, patient, sentence

Array = NDArray[Any]
Inputs = Mapping[str, Array]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Answer(Generic[R]):
    """What the server makes of an item; or one sentence that says why there is nothing."""

    result: R | None = None
    error: str = ""


@dataclass(frozen=True)
class Server:
    """`url` and `ca` are those of `clients.connection.connect`; `concurrency` requests are in
    flight."""

    url: str | None = None
    protocol: Protocol = "grpc"
    concurrency: int = 4
    ca: Path | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Server:
        return cls(options.url, options.protocol, options.concurrency, options.ca)

    def answers(
        self, model: str, items: Sequence[T], ask: Callable[[T], Inputs], read: Callable[[Any], R]
    ) -> Iterator[Answer[R]]:
        """An answer for each item, in their order; an item a request, so that none spoils another.

        Args:
            ask: the inputs of an item; an OSError is its answer.
            read: what is wanted of tritonclient's result.
        """
        address, local = self.url or default_url(self.protocol), threading.local()

        def start() -> None:  # a thread has a client of its own: the HTTP one must not be shared
            local.client = connect(self.protocol, address, self.ca)

        def answer(item: T) -> Answer[R]:
            try:
                inputs = ask(item)
            except OSError as error:
                return Answer(error=str(error.strerror))
            try:
                return Answer(read(_infer(local.client, MODULES[self.protocol], model, inputs)))
            except (InferenceServerException, *LOST) as error:
                return Answer(error=sentence(error, address))

        with ThreadPoolExecutor(self.concurrency, initializer=start) as pool:
            yield from pool.map(answer, items)


@patient
def _infer(client: Any, module: Any, model: str, inputs: Inputs) -> Any:
    tensors = []
    for name, array in inputs.items():
        tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return client.infer(model, tensors)


def told(client: str, errors: Iterable[str]) -> int:
    """Says what the server did not answer; the exit code."""
    code = 0
    for error in filter(None, errors):
        print(f"{client}: {error}", file=sys.stderr)
        code = 1
    return code


def cell(value: bytes | str) -> Array:
    """BYTES [1, 1]. Bytes that were not UTF-8 when Python read them go as they were."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return np.array([[data]], np.object_)
