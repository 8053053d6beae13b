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
import math
import os
import signal
import socket
import ssl
import sys
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..machine.parent import die_with
from ..machine.temporary import temporary_folder
from ..model.errors import describe
from . import tls
from .dialler import Dialler
from .fetching import Room
from .run_folder import run_folder
from .shared_token import TokenMissing, read_token

GONE = 3
"""Exit status: it was told to leave without an exchange, and there is none any more."""
_LEAVE_HELP = (
    "without a word of an exchange, after which it ends; after the lease if its host says that"
    " there is none. Never unless told"
)


class Settings(NamedTuple):
    address: tuple[str, int]
    """The exchange's."""
    token: bytes
    encryption: ssl.SSLContext | None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m python_mp.agent", description=__doc__)
    add = parser.add_argument
    add("--connect", required=True, metavar="HOST:PORT", help="the exchange, on Triton's host")
    add("--name", default=socket.gethostname(), help="this host's; each agent has one of its own")
    add("--token-file", type=Path, metavar="FILE", help="else AGENT_TOKEN")
    add("--cache", type=Path, metavar="DIR", help="for artifacts that are not at the leader's path")
    add("--cache-gigabytes", type=float, default=100.0, metavar="GB", help="of these, at most")
    add("--leave-after-seconds", type=float, default=math.inf, metavar="S", help=_LEAVE_HELP)
    add("--end-with", type=int, metavar="PID", help="of the process that started it")
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


async def _until_told(dialler: Dialler) -> bool:
    task = asyncio.ensure_future(dialler.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        return await task
    return False


def check(ours: argparse.Namespace, environment: MutableMapping[str, str]) -> Settings:
    """What it needs to begin, and takes the token out of the environment.

    Raises:
        TokenMissing: other hosts are to be reached without one.
        OSError, ValueError: a file cannot be read, or the address is none.
    """
    address = split_address(ours.connect)
    token = read_token(ours.token_file, environment, is_local=_is_local(address[0]))
    return Settings(address, token, tls.of_agent(ours))


def main(arguments: Sequence[str] | None = None) -> int:
    ours = parse(arguments)
    if ours.end_with:
        die_with(ours.end_with, signal.SIGTERM)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        settings = check(ours, os.environ)
        cache = ours.cache or Path.home() / ".cache" / "python_mp" / "artifacts" / ours.name
        room = Room(cache, int(ours.cache_gigabytes * 1e9))
        with run_folder(temporary_folder()) as runtime:
            dialler = Dialler(ours.name, *settings, runtime, room, ours.leave_after_seconds)
            is_gone = asyncio.run(_until_told(dialler))
    except (TokenMissing, OSError, ValueError) as error:
        print(f"agent: {describe(error)}", file=sys.stderr)
        return 1
    return GONE if is_gone else 0


if __name__ == "__main__":
    sys.exit(main())
