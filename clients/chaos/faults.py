"""What is done to the server. Each fault is a context: it opens with the harm done, and on closing
undoes what is left of it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from signal import SIGCONT, SIGKILL, SIGSEGV, SIGSTOP, SIGTERM, Signals

from clients.chaos import bursts
from clients.chaos.new_version import next_version
from clients.chaos.processes import ChaosError
from clients.chaos.scene import Harm, Scene, Victim, any_rank, any_stub, tritonserver

FLOOD_FACTOR, FLOOD_SECONDS = 4, 5.0
CANCEL_SECONDS = 3.0


@contextmanager
def strike(
    scene: Scene, number: Signals, find: Callable[[Scene], Victim] = any_rank
) -> Iterator[Harm]:
    victim = find(scene)
    if find is any_rank:
        scene.streams.strike()
    yield victim.hit(number)


@contextmanager
def twice(scene: Scene) -> Iterator[Harm]:
    """Once more at the moment when the next generation serves."""
    victim = any_rank(scene)
    first = victim.hit(SIGKILL)
    if scene.target.wait(first.healed, scene.patience) is None:
        raise ChaosError(f"{first.what} was not replaced within {scene.patience:.0f} s")
    yield any_rank(scene, victim.model).hit(SIGKILL)


@contextmanager
def freeze(scene: Scene) -> Iterator[Harm]:
    """Longer than the watchdog's patience ends the group; shorter is only a delay."""
    victim, seconds = any_rank(scene), scene.order.uniform(*scene.freeze_seconds)
    process = victim.process
    resume = threading.Timer(seconds, process.send, [SIGCONT])
    at = victim.hit(SIGSTOP).at
    resume.start()
    try:
        yield Harm(
            f"{victim.what} for {seconds:.1f} s",
            victim.exam,
            at,
            lambda now: now.is_whole and not (resume.is_alive() and now.names(process.pid)),
        )
    finally:
        resume.cancel()
        process.send(SIGCONT)


@contextmanager
def reload(scene: Scene) -> Iterator[Harm]:
    """A new version of a model that has ranks, and back to the old one."""
    victim = any_rank(scene)
    name = victim.model
    with next_version(scene.repository / name) as number:
        yield Harm(
            f"{name} with version {number}",
            victim.exam,
            time.monotonic(),
            lambda now: now.is_whole and number in now.models[name].versions,
        )
    back = scene.target.wait(
        lambda now: now.is_whole and number not in now.models[name].versions, scene.patience
    )
    if back is None:
        raise ChaosError(f"version {number} was still served {scene.patience:.0f} s after it went")


@contextmanager
def flood(scene: Scene) -> Iterator[Harm]:
    with bursts.Burst(scene.connect("grpc"), scene.journal, "flood") as burst:
        rate = FLOOD_FACTOR * scene.rate
        bursts.flood(burst, scene.exams, rate, FLOOD_SECONDS, scene.order)
        yield after(scene, burst)


@contextmanager
def cancel(scene: Scene) -> Iterator[Harm]:
    with bursts.Burst(scene.connect("grpc"), scene.journal, "cancel") as burst:
        bursts.cancel(burst, scene.exams, scene.rate, CANCEL_SECONDS, scene.order)
        yield after(scene, burst)


def after(scene: Scene, burst: bursts.Burst) -> Harm:
    """All is sent, and not all of it answered."""
    exam, at = scene.any_exam(), time.monotonic()
    return Harm(f"{burst.sent} requests", exam, at, lambda now: now.is_whole)


@dataclass(frozen=True)
class Kind:
    """`may_refuse`: requests may be told meanwhile to come back later."""

    commit: Callable[[Scene], AbstractContextManager[Harm]]
    meaning: str
    may_refuse: bool = False


KINDS = {
    "kill": Kind(partial(strike, number=SIGKILL), "SIGKILL of a rank"),
    "twice": Kind(twice, "SIGKILL of a rank, and again as soon as the next generation serves"),
    "term": Kind(partial(strike, number=SIGTERM), "SIGTERM of a rank"),
    "segfault": Kind(partial(strike, number=SIGSEGV), "SIGSEGV of a rank"),
    "freeze": Kind(freeze, "SIGSTOP of a rank, and SIGCONT after --freeze-seconds"),
    "reload": Kind(reload, "a new version of a model appears, and goes again"),
    "cancel": Kind(cancel, "clients that cancel half of their requests"),
    "flood": Kind(
        flood,
        f"{FLOOD_FACTOR} times as many requests as the load's for {FLOOD_SECONDS:.0f} s",
        may_refuse=True,
    ),
    "stub": Kind(
        partial(strike, number=SIGKILL, find=any_stub),
        "SIGKILL of a stub; only if named, for Triton never answers some of what it had in hand",
        may_refuse=True,
    ),
    "server": Kind(
        partial(strike, number=SIGKILL, find=tritonserver),
        "SIGKILL of tritonserver; only if named",
        may_refuse=True,
    ),
}
