"""Hosts, where the machine lets us make them."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.support.network import Host, network, why_not

Hosts = Callable[[int], AbstractContextManager[list[Host]]]


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """`with hosts(2) as (a, b):`; see `tests/support/network.py`."""
    if reason := why_not():
        pytest.skip(reason)
    return network
