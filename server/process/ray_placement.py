"""Ray's driver, which places agents on other hosts, beside a server, which starts it anew.

It has a process of its own, so that whatever becomes of Ray takes nothing with it but placement.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import subprocess
from collections.abc import Callable
from typing import Self

from python_mp.agent import __main__ as agent
from python_mp.machine.net import Net
from server.endpoints import Endpoints
from server.errors import ServerError
from server.process.beside import Beside, spawn

MODULE = "python_mp.agent.ray_driver"


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ray-address", metavar="HOST:PORT", help="of the Ray cluster; else RAY_ADDRESS")
    add("--ray-bundle", metavar="JSON", help='reserved on each host: {"CPU": 1} unless told')
    add("--ray-spares", type=int, default=0, metavar="N", help="hosts more than models need")
    add("--ray-agent-options", default="", metavar="OPTIONS", help="more of them, for all agents")


class RayPlacement(Beside):
    """A context in which Ray is asked for agents on so many other hosts."""

    KILL_AFTER = 3.0

    def __init__(
        self,
        hosts: int,
        ours: argparse.Namespace,
        endpoints: Endpoints,
        net: Net,
        say: Callable[[str], None],
    ) -> None:
        super().__init__("Ray's driver", net, say)
        given = {"address": ours.ray_address, "bundle": ours.ray_bundle}
        given |= {"agent-options": ours.ray_agent_options}
        self._order = [f"--connect={endpoints.agents_url}", f"--hosts={hosts + ours.ray_spares}"]
        self._order += [f"--{name}={value}" for name, value in given.items() if value]
        agent.parse([self._order[0], *shlex.split(ours.ray_agent_options)])

    def __enter__(self) -> Self:
        """Raises ServerError where Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise ServerError("placement 'ray' needs Ray: pip install -r requirements-ray.txt")
        return super().__enter__()

    def start(self) -> subprocess.Popen[str]:
        return spawn(MODULE, *self._order, output=None)
