"""python -m python_mp.agent --connect HOST:PORT --name NAME

Runs ranks on this host for models that are served on another one. It dials the exchange there and
stays; when the connection ends, or nothing is heard for the lease, its ranks end, and it dials
again.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import random
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..machine.temporary import temporary_folder
from ..model.errors import describe
from . import handshake, tls
from .forkservers import Forkservers
from .handshake import Refused
from .host import Connected
from .link import Link, LinkError
from .run_folder import run_folder
from .shared_token import TokenMissing, read_token
from .versions import versions

log = logging.getLogger("agent")

_DIAL_SECONDS = 1.0
_PAUSES = (0.1, 0.2, 0.4)
"""Seconds between two tries of an exchange that cannot be reached: it may be back at any moment."""
_REFUSED_PAUSES = (1.0, 2.0, 5.0, 10.0)
"""Of one that refuses, or whose connection ends at once."""
_LASTED_SECONDS = 5.0


class Dialler:
    """Connects, again and again.

    Args:
        address: the exchange's.
        runtime: a private folder.
    """

    def __init__(
        self,
        address: tuple[str, int],
        name: str,
        token: bytes,
        encryption: ssl.SSLContext | None,
        runtime: Path,
        cache: Path,
    ) -> None:
        self._address = address
        self._name = name
        self._token = token
        self._encryption = encryption
        self._runtime = runtime
        self._cache = cache
        self._forkservers = Forkservers()
        self._said = ""

    async def run(self) -> None:
        """For ever; ends no other way than by being cancelled."""
        unreached = refused = 0
        try:
            while True:
                began = time.monotonic()
                try:
                    why = await self._serve()
                    unreached = 0
                    refused = 0 if time.monotonic() - began > _LASTED_SECONDS else refused + 1
                    self._say(why)
                except OSError as error:
                    unreached += 1
                    why = describe(error) if str(error) else "it does not answer in time"
                    self._say(f"the exchange cannot be reached: {why}")
                except (Refused, LinkError) as error:
                    refused += 1
                    self._say(f"the exchange refuses this agent: {describe(error)}")
                await asyncio.sleep(_pause(unreached, refused))
        finally:
            self._forkservers.close()

    async def _serve(self) -> str:
        host, port = self._address
        async with asyncio.timeout(_DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=self._encryption)
        link = Link(reader, writer)
        try:
            async with asyncio.timeout(handshake.SECONDS):
                greeted = await handshake.greet(link, self._token, self._name, versions())
            log.info("connected to %s:%d as %s", host, port, self._name)
            self._said = ""
            connected = Connected(
                link, greeted.lease, self._runtime, self._cache, self._forkservers
            )
            return await connected.serve()
        finally:
            link.close()

    def _say(self, text: str) -> None:
        """Once, as long as it is the same."""
        if text != self._said:
            log.warning("%s; it is tried again", text)
        self._said = text


def _pause(unreached: int, refused: int) -> float:
    pauses, count = (_REFUSED_PAUSES, refused) if refused else (_PAUSES, unreached)
    seconds = pauses[min(count, len(pauses)) - 1] if count else pauses[0]
    return seconds * random.uniform(0.8, 1.2)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m python_mp.agent", description=__doc__)
    add = parser.add_argument
    add("--connect", required=True, metavar="HOST:PORT", help="the exchange, on Triton's host")
    add("--name", default=socket.gethostname(), help="this host's; each agent has one of its own")
    add("--token-file", type=Path, metavar="FILE", help="else AGENT_TOKEN")
    add("--cache", type=Path, metavar="DIR", help="for artifacts that are not at the leader's path")
    tls.add_to_agent(parser)
    return parser.parse_args(arguments)


def split_address(text: str) -> tuple[str, int]:
    """Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(f"--connect must be HOST:PORT, not {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _until_told(dialler: Dialler) -> None:
    task = asyncio.ensure_future(dialler.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


def main(arguments: Sequence[str] | None = None) -> int:
    ours = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        address = split_address(ours.connect)
        token = read_token(ours.token_file, os.environ, is_local=_is_local(address[0]))
        cache = ours.cache or Path.home() / ".cache" / "python_mp" / "artifacts" / ours.name
        encryption = tls.of_agent(ours)
        with run_folder(temporary_folder()) as runtime:
            dialler = Dialler(address, ours.name, token, encryption, runtime, cache)
            asyncio.run(_until_told(dialler))
    except (TokenMissing, OSError, ValueError) as error:
        print(f"agent: {describe(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
