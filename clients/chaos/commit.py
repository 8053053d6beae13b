"""One fault after the other, and how long each one hurts."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from clients.chaos.faults import KINDS
from clients.chaos.processes import ChaosError
from clients.chaos.scene import Scene
from clients.chaos.traffic import Probe
from clients.chaos.verdict import Committed

STEADY_SECONDS = 1.0  # /status may be late by as much


def schedule(kinds: Sequence[str], order: random.Random) -> Iterator[str]:
    """All kinds in some order, then all again in another one, for ever."""
    while kinds:
        yield from order.sample(kinds, len(kinds))


def commit(kind: str, scene: Scene, probes: Mapping[str, Probe]) -> Committed:
    """Do it, and wait until the server has recovered or has had its time."""
    began = time.monotonic()
    done = Committed(kind, "", began, began, KINDS[kind].may_refuse)
    try:
        with KINDS[kind].commit(scene) as harm:
            done = replace(done, what=harm.what)
            probe = probes[harm.exam.model]
            with ThreadPoolExecutor(1) as pool:  # both clocks run
                answered = pool.submit(probe.first_right, harm.at, scene.patience)
                whole = scene.target.wait(harm.healed, scene.patience, STEADY_SECONDS)
            done = replace(
                done,
                answers=_since(harm.at, answered.result()),
                whole=_since(harm.at, whole),
            )
    except ChaosError as error:
        done = replace(done, trouble=str(error))
    return replace(done, over=time.monotonic())


def _since(began: float, moment: float | None) -> float | None:
    return None if moment is None else moment - began


def told(fault: Committed) -> str:
    """One line for the operator."""
    if fault.trouble:
        return f"{fault.kind:9} {fault.what}: {fault.trouble}".replace(" : ", " ")
    answers = "never" if fault.answers is None else f"after {fault.answers:.2f} s"
    whole = "never" if fault.whole is None else f"after {fault.whole:.2f} s"
    return f"{fault.kind:9} {fault.what}: answers again {answers}, whole again {whole}"
