"""Processes that a build gives work to: they end with it, and what a library changes there for its
whole process (ModelOpt patches ONNX Runtime's quantiser) reaches no other work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from signal import SIGKILL

from build_scripts.errors import BuildError
from python_mp.machine.parent import die_with


@contextmanager
def pool(most: int, tasks: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """At most `most` processes, started when there is work. It must be functions of modules, since
    they are sent to other processes.

    Args:
        tasks: after as many a process ends; None for no bound.

    Raises:
        BuildError: one of the processes was killed.
    """
    spawn = get_context("spawn")
    # A killed build must not leave its workers behind: they would wait for work for ever.
    started = spawn, die_with, (os.getpid(), SIGKILL)
    with ProcessPoolExecutor(most, *started, max_tasks_per_child=tasks) as executor:
        try:
            yield executor
        except BrokenProcessPool:
            raise BuildError(
                "A process of the build was killed, most likely because memory ran out (dmesg says"
                " so): end other programs, or build on a machine with more memory."
            ) from None
