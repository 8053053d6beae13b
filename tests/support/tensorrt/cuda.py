"""What the runner needs of torch.cuda, on the CPU. Calls must fit torch's real signatures."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch


class Stream:
    """A stream does at once what is asked; `waited` has the streams it waited for."""

    cuda_stream = 7

    def __init__(self, device: torch.device | None = None) -> None:
        self.waited: list[Stream] = []

    def wait_stream(self, stream: "Stream") -> None:
        self.waited.append(stream)


class CUDAGraph:
    """Work captured, to be done at every replay."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for each in self.work:
            each()


class Cuda:
    """Patches torch.cuda; `do` is how fakes do what would run on the GPU."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current = Stream()
        self.graphs: list[CUDAGraph] = []
        self._capturing: CUDAGraph | None = None
        capture = inspect.signature(torch.cuda.graph.__init__)

        @contextmanager
        def graph(*args: Any, **kwargs: Any) -> Iterator[None]:
            capture.bind(None, *args, **kwargs)
            self._capturing = args[0]
            self.graphs.append(args[0])
            yield
            self._capturing = None

        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
        patch.setattr(torch.cuda, "graph", graph)
        patch.setattr(torch.cuda, "stream", nullcontext)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        patch.setattr(torch.cuda, "current_stream", lambda device: self.current)

    def do(self, work: Callable[[], None]) -> None:
        (self._capturing.work.append if self._capturing else lambda each: each())(work)
