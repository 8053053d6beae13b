"""python -m python_mp.agent.ray_driver --connect HOST:PORT --hosts N

Has Ray run agents on so many other hosts, and again elsewhere where one is lost. The placement
group and its actors are detached: they do not need this process, and the next one finds them by
name. It only places; who is heard of, and who is lost, is the exchange's business.

What goes wrong with Ray ends it; who has started it starts it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import get_placement_group, placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..machine.backoff import Backoff
from ..model.errors import describe
from . import __main__ as agent
from .ray_actor import AgentActor

log = logging.getLogger("ray driver")

NAMESPACE = "python_mp"
_LOOK_SECONDS = 1.0
_PATIENT_LOOKS = 5
"""Until it says what it waits for: a group takes a second or two where there are hosts."""
_LEAVE_SECONDS = 30.0
"""Without a word of an exchange, after which an agent gives its host back to Ray, though nobody
tells it to: a link that is cut may be mended until then. Where its host says that there is none, it
waits for the lease."""
_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds from one start of an agent to the next one; the last goes on for as long as it takes."""


@dataclass
class _Place:
    """A bundle of the group, for one agent."""

    begun: Any = None
    """What the actor that this process has started will answer."""
    due: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(_PAUSES))

    def next_start(self) -> bool:
        """Whether it is time for one; it counts then."""
        now = time.monotonic()
        if now < self.due:
            return False
        self.due = self.backoff.failed(now)
        return True


class Placement:
    """Agents of one exchange, each on a host of its own, none on this one.

    Args:
        exchange: its address, HOST:PORT, which names the group.
        bundle: what each host must have free, and is reserved there.
        options: of all agents.
    """

    def __init__(
        self, exchange: str, hosts: int, bundle: Mapping[str, float], options: Sequence[str]
    ) -> None:
        self._name = f"python_mp agents of {exchange}"
        self._bundles = [dict(bundle)] * hosts
        self._options = [f"--connect={exchange}", *options]
        self._places = [_Place() for _ in self._bundles]

    def look(self) -> str:
        """Starts the agents that are missing; what is waited for, empty if nothing is.

        Raises:
            RayError, ValueError: Ray cannot be asked.
        """
        group = self._group()
        if group is None:
            return "a placement group of other hosts is removed first"
        if placement_group_table(group)["state"] != "CREATED":
            wanted = json.dumps(self._bundles[0])
            return f"Ray has not yet {len(self._bundles)} other hosts with {wanted} free"
        for place in range(len(self._bundles)):
            if not self._is_there(place):
                self._begin(group, place)
        return ""

    def remove(self) -> None:
        """All agents end. Raises as `look`."""
        if group := self._found():
            remove_placement_group(group)

    def _group(self) -> PlacementGroup | None:
        """The one that is there, or a new one."""
        group = self._found()
        if group is None:
            elsewhere = {"ray.io/node-id": f"!{ray.get_runtime_context().get_node_id()}"}
            return placement_group(
                self._bundles,
                strategy="STRICT_SPREAD",
                name=self._name,
                lifetime="detached",
                bundle_label_selector=[elsewhere] * len(self._bundles),
            )
        if [*placement_group_table(group)["bundles"].values()] == self._bundles:
            return group
        remove_placement_group(group)
        return None

    def _found(self) -> PlacementGroup | None:
        try:
            return get_placement_group(self._name)
        except ValueError:
            return None

    def _actor(self, place: int) -> str:
        return f"{self._name}: {place}"

    def _is_there(self, place: int) -> bool:
        """Or on its way."""
        try:
            ray.get_actor(self._actor(place), namespace=NAMESPACE)
        except ValueError:
            return False
        return True

    def _begin(self, group: PlacementGroup, number: int) -> None:
        place = self._places[number]
        if not place.next_start():
            return
        if place.begun is not None:
            log.warning("agent %d has ended: %s; it is started again", number, _why(place.begun))
        actor = ray.remote(AgentActor).options(
            name=self._actor(number),
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=0,
            num_cpus=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
        )
        place.begun = actor.remote(number, self._options).host.remote()


def _why(begun: Any) -> str:
    """What became of an actor, by its first answer."""
    try:
        return f"it ran on {ray.get(begun, timeout=0)}; Ray's log of its worker there says more"
    except RayError as error:
        return str(error).strip().rpartition("\n")[2].strip()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m python_mp.agent.ray_driver")
    add = parser.add_argument
    add("--connect", required=True, metavar="HOST:PORT", help="the exchange that agents dial")
    add("--hosts", required=True, type=int, metavar="N", help="on which agents are to run")
    add("--address", default="auto", help="of the Ray cluster, of which this host is a node")
    add("--bundle", type=bundle, default={"CPU": 1.0}, metavar="JSON", help="reserved on each")
    add("--agent-options", default="", help="more of them, as on a command line")
    return parser.parse_args(arguments)


def bundle(text: str) -> dict[str, float]:
    """Raises ValueError."""
    read = json.loads(text)
    if not (isinstance(read, dict) and read and all(map(_is_amount, read.values()))):
        raise ValueError(f'a bundle is JSON like {{"CPU": 8, "GPU": 8}}, not {text}')
    return {name: float(amount) for name, amount in read.items()}


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def reachable(exchange: str) -> str:
    """The address of one that listens on all of this host's: that by which Ray knows the host."""
    host, port = agent.split_address(exchange)
    everywhere = host in {"0.0.0.0", "::"}
    return f"{ray.util.get_node_ip_address()}:{port}" if everywhere else exchange


def place(ours: argparse.Namespace, told: threading.Event) -> None:
    """Until told. Raises RayError, ValueError where Ray cannot be asked."""
    options = [f"--leave-after-seconds={_LEAVE_SECONDS:g}", *shlex.split(ours.agent_options)]
    placement = Placement(reachable(ours.connect), ours.hosts, ours.bundle, options)
    waited = 0
    while not told.is_set():
        missing = placement.look()
        waited = waited + 1 if missing else 0
        if waited == _PATIENT_LOOKS:
            log.warning("%s; it waits for them", missing)
        told.wait(_LOOK_SECONDS)
    placement.remove()


def main(arguments: Sequence[str] | None = None) -> int:
    ours = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    told = threading.Event()
    try:
        ray.init(ours.address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own.
            signal.signal(number, lambda *_: told.set())
        place(ours, told)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        log.error("Ray cannot be asked for hosts: %s", describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
