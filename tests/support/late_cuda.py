"""A stand-in for a GPU: whatever is asked for happens later, in order, and memory is never clean.

Who does not wait where he must gets wrong numbers. Work that is asked for outside a graph is done
at once, after all that was asked for before: torch's own stream would see to that.
"""

import threading
import time
from collections.abc import Callable, Mapping
from queue import Queue
from random import Random

import torch
from torch import Tensor

from python_mp.model.request import Array
from python_mp.rank.cuda import Cuda
from python_mp.rank.device import CPU, CudaDevice
from python_mp.sharding.packed import Packed

POISON = 0x7B
"""Of floats and integers a large number that nothing here computes."""


class LateCuda(Cuda):
    def __init__(self, seed: int) -> None:
        self.place = CPU
        self.replayed = 0
        self._random = Random(seed)
        self._graphs: list[Mapping[str, Tensor]] = []
        self._free: list[Tensor] = []
        self._asked: Queue[Callable[[], object]] = Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def pinned(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def memory(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def copy(self, to: Tensor, of: Tensor) -> None:
        self._asked.put(lambda: to.copy_(of))

    def mark(self) -> Callable[[], None]:
        done = threading.Event()
        self._asked.put(done.set)

        def wait() -> None:
            assert done.wait(20), "what was asked for raised"

        return wait

    def capture(
        self, call: Callable[[], Mapping[str, Tensor]]
    ) -> tuple[Callable[[], None], Mapping[str, Tensor]]:
        self.mark()()
        outputs = dict(call())
        self._graphs.append(outputs)

        def replay() -> None:
            for graph in self._graphs:  # They share one memory.
                for tensor in graph.values():
                    tensor.view(torch.uint8).fill_(POISON)
            found = call()
            for name, tensor in outputs.items():
                tensor.copy_(found[name])
            self.replayed += 1

        return lambda: self._asked.put(replay), outputs

    def reserved(self) -> int:
        return len(self._graphs)

    def free(self) -> int:
        return 1 << 20

    def total(self) -> int:
        return 10_000

    def describe(self) -> dict[str, str]:
        return {"name": "late", "compute_capability": "0.0"}

    def give_back(self) -> None:
        pass

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            asked = self._asked.get()
            time.sleep(self._random.choice((0, 0, 1e-4, 3e-3)))
            asked()


class LateDevice(CudaDevice):
    def take(self, inputs: Mapping[str, Array], host: Packed) -> Packed:
        batch = super().take(inputs, host)
        self.cuda.mark()()
        return batch
