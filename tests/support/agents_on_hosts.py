"""Agents on the hosts of `tests/support/network.py`, for a front that stands on one of them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from python_mp.wire.exchange_line import VARIABLE
from tests.support.network import Host
from tests.support.other_hosts import QUICK, Program


@contextmanager
def connected(leader: Host, others: Sequence[Host], folder: Path) -> Iterator[None]:
    """Within it this thread stands on the leader's host, beside an exchange to which an agent on
    each of the others is connected."""
    name = f"python_mp-test-{folder.name}"
    variables = {VARIABLE: name, "AGENT_TOKEN": "a token of these tests"}
    with ExitStack() as held:
        held.enter_context(mock.patch.dict(os.environ, variables))
        held.enter_context(leader.entered())
        where = "--host", leader.address, "--port", 0, *QUICK
        exchange = Program("python_mp.agent.exchange_server", name, *where)
        held.callback(exchange.kill)
        port = exchange.says(r"may connect to .*:(\d+)")[1]
        for host in others:
            asked = "--connect", f"{leader.address}:{port}", "--name", host.name
            with host.entered():
                agent = Program("python_mp.agent", *asked, "--cache", folder / host.name)
            held.callback(agent.kill)
            agent.says("connected to")
        yield
