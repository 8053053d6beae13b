"""Returns its inputs; made for tests and for measuring what python_mp itself costs.

Each output is the input of the same position. An optional input FAULT INT32 [3] asks for trouble:
fault, rank (-1 for each of them), argument. One request with a fault does it to the whole batch, as
a real one would. A start takes `module.start_seconds` longer, and fails while the file
`module.die_if` exists: with the errno that it holds, or without a word.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ...model.errors import InvalidInput, RequestFailed
from ...model.rank_spec import RankSpec
from ...model.request import Array

FAULT = "FAULT"
RAISE, EXIT, SLEEP, HANG, SEGFAULT, REFUSE, WORK, FAIL = range(1, 9)
EVERYONE = -1


def load(spec: RankSpec) -> Echo:
    start(spec)
    return Echo(spec)


def start(spec: RankSpec) -> None:
    """Takes as long, or dies, as `module.start_seconds` and `module.die_if` say."""
    parameters = spec.config.module_parameters
    time.sleep(float(parameters.get("start_seconds", 0)))
    if "die_if" in parameters and (cause := Path(parameters["die_if"])).exists():
        if number := cause.read_text():
            raise OSError(int(number), os.strerror(int(number)))
        os._exit(1)


class AtOnce:
    """An engine without weights or peers: whatever `_forward` returns is there at once."""

    depth, padded, blocks = 1, 0, 0

    def __init__(self) -> None:
        self.phases: Mapping[str, float] = {}

    def begin(self, inputs: Mapping[str, Array]) -> Callable[[], Mapping[str, Array]]:
        outputs = self._forward(inputs)
        return lambda: outputs

    def _forward(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        raise NotImplementedError

    def improve(self) -> bool:
        return False

    def is_apart(self) -> bool:
        return True

    def waited_ns(self) -> int:
        return 0

    def close(self) -> None:
        pass


class Echo(AtOnce):
    def __init__(self, spec: RankSpec) -> None:
        super().__init__()
        self._rank = spec.rank
        self._answers = spec.answers
        self._names = [s.name for s in spec.config.inputs if s.name not in (FAULT, "LENGTHS")]
        self._outputs = [output.name for output in spec.config.outputs]

    def _forward(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        for fault, rank, argument in inputs.get(FAULT, ()):
            if fault == REFUSE:
                raise InvalidInput(f"refused as asked ({argument})")
            if fault and rank in (self._rank, EVERYONE):
                commit(int(fault), int(argument))
        if not self._answers:
            return {}
        return dict(zip(self._outputs, (inputs[name] for name in self._names), strict=True))


def commit(fault: int, argument: int) -> None:
    if fault == RAISE:
        raise RuntimeError(f"raised as asked ({argument})")
    if fault == FAIL:
        raise RequestFailed(f"failed as asked ({argument})")
    if fault == EXIT:
        os._exit(argument)
    if fault == SEGFAULT:
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == WORK:
        until = time.monotonic() + argument / 1e3
        while time.monotonic() < until:
            pass
        return
    time.sleep(argument / 1e3 if fault == SLEEP else 1e9)
