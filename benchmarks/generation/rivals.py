"""Other programs that generate text on processors, in processes of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers import venv
from benchmarks.peers.known import VLLM

from .asked_program import child
from .decoder_replicas import checkpoint
from .random_prompts import different

Rate = Callable[[int], float]
"""Tokens a second of so many streams."""


class Rivals:
    """vLLM in the virtual environment of `benchmarks.peers`, made when it is first asked for, and
    transformers' `generate_batch`."""

    def __init__(self, tokens: int, stack: ExitStack) -> None:
        self._tokens, self._stack = tokens, stack

    def vllm(self) -> Rate:
        """With what it asks for in its log: Intel's OpenMP, and all cores."""
        python, script = Path(venv.python(VLLM)), Path(__file__).with_name("vllm_in_process.py")
        variables = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        for library in (python.parent.parent / "lib").glob("libiomp5.so"):
            variables["LD_PRELOAD"] = str(library)
        return self._asked([str(python), str(script), str(checkpoint())], variables)

    def generate_batch(self) -> Rate:
        module = "benchmarks.generation.generate_batch"
        return self._asked([sys.executable, "-m", module, str(checkpoint())])

    def _asked(self, command: list[str], variables: Mapping[str, str] | None = None) -> Rate:
        asked = self._stack.enter_context(child(command, variables))

        def rate(streams: int) -> float:
            tokens, seconds = asked.ask([different(streams, self._tokens), self._tokens])
            assert tokens == streams * self._tokens, f"{tokens} tokens came"
            return float(tokens / seconds)

        rate(2)  # It is warm from now on.
        return rate
