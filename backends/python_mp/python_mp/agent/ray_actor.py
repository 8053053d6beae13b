"""What Ray starts on another host: an actor that runs the agent there, and nothing else.

Ranks are the agent's, as on every host. They are not actors: these share a process with Ray's
threads, see only the devices that Ray counts out to them, and NCCL is slow there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from . import __main__ as agent

_REMOVE_SECONDS = 1.0
_OF_RAY = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RAY_")


class AgentActor:
    """Its process ends with the agent, and the agent with its process. Where there is no server any
    more, its placement group goes, too: nobody else would give Ray these hosts back.

    Args:
        place: its number in the placement group.
        options: of the agent; all but its name.

    Raises:
        TokenMissing, OSError, ValueError: an agent cannot run here with these options.
    """

    def __init__(self, place: int, options: Sequence[str]) -> None:
        from ray.util import get_node_ip_address  # Ray is optional.

        host = get_node_ip_address().replace(":", "-")
        given = [f"--name={host}-{place}", f"--end-with={os.getpid()}", *options]
        agent.check(agent.parse(given), dict(os.environ))
        self._agent = subprocess.Popen(
            [sys.executable, "-m", "python_mp.agent", *given],
            env=without_rays(os.environ),
            stdin=subprocess.DEVNULL,
        )
        threading.Thread(target=self._end_with_it, daemon=True).start()

    def host(self) -> str:
        """Where it runs."""
        return os.uname().nodename

    def _end_with_it(self) -> None:
        status = self._agent.wait()
        if status == agent.GONE:
            threading.Timer(_REMOVE_SECONDS, os._exit, [status]).start()  # Ray may be gone, too.
            _remove_own_group()
        os._exit(status)


def _remove_own_group() -> None:
    from ray.util import get_current_placement_group, remove_placement_group

    with suppress(Exception):  # Another one of its agents has done it.
        if group := get_current_placement_group():
            remove_placement_group(group)


def without_rays(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what Ray has set in it for the actor alone: devices and threads are the layout's."""
    return {name: value for name, value in environment.items() if not name.startswith(_OF_RAY)}
