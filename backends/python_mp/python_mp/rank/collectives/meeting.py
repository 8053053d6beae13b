"""How ranks of different hosts find each other, and know that it is they.

In the store each says where it listens, on its own host's address; who has the higher number dials.
A stranger may reach these ports. So each end of a connection proves by HMAC that it knows this
generation's secret, which rank 0 makes and the store has as well.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import socket
import time
from collections.abc import Sequence

from torch.distributed.distributed_c10d import Store

log = logging.getLogger(__name__)

_STRANGER_SECONDS = 2.0
"""In which who connects must have proved itself: the others wait meanwhile."""
_LEAST_SECONDS = 0.001
_NONCE, _RANK = 32, 4


def meet(store: Store, address: str, me: int, peers: Sequence[int]) -> dict[int, socket.socket]:
    """A connection to each of these world ranks, which ask for one to us, the rank `me`, as well.

    Rank 0 must take part, even if it has no peers. `store` is that of all ranks of this generation,
    and of nobody else; `address` is this host's.
    """
    if me == 0:
        store.set("secret", secrets.token_hex(32))
    key = bytes(store.get("secret"))
    family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
    found = {}
    with socket.create_server((address, 0), family=family) as listener:
        store.set(f"address {me}", json.dumps([address, listener.getsockname()[1]]))
        for peer in (each for each in peers if each < me):
            host, port = json.loads(store.get(f"address {peer}"))
            found[peer] = _dial((host, port), key, me, peer)
        while missing := set(peers) - set(found):
            connection, caller = listener.accept()
            try:
                found[_let_in(connection, key, me, missing)] = connection
            except (OSError, EOFError) as error:
                connection.close()
                log.warning("refused a connection from %s: %s", caller[0], error)
    return found


def _dial(address: tuple[str, int], key: bytes, me: int, peer: int) -> socket.socket:
    connection = socket.create_connection(address)
    if greet(connection, key, me, dials=True) != peer:
        raise PermissionError(f"another rank than {peer} answers at its address")
    return connection


def _let_in(connection: socket.socket, key: bytes, me: int, wanted: set[int]) -> int:
    peer = greet(connection, key, me, dials=False, seconds=_STRANGER_SECONDS)
    if peer not in wanted:
        raise PermissionError(f"rank {peer} is not expected")
    return peer


def greet(
    connection: socket.socket, key: bytes, me: int, *, dials: bool, seconds: float | None = None
) -> int:
    """The other end's rank.

    Args:
        seconds: for all of it; None where whoever started this rank bounds its start.

    Raises:
        PermissionError: it does not have the key.
        EOFError, OSError: it says too little, or nothing, or not in time.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    mine = secrets.token_bytes(_NONCE) + me.to_bytes(_RANK)
    connection.sendall(mine)
    theirs = _exactly(connection, len(mine), deadline)
    called = mine + theirs if dials else theirs + mine  # Who dials stands first.
    connection.sendall(_proof(key, called, dials))
    if not hmac.compare_digest(_exactly(connection, 32, deadline), _proof(key, called, not dials)):
        raise PermissionError("it does not know the secret of this group")
    return int.from_bytes(theirs[_NONCE:])


def _proof(key: bytes, called: bytes, dials: bool) -> bytes:
    return hmac.digest(key, called + bytes([dials]), hashlib.sha256)


def _exactly(connection: socket.socket, count: int, deadline: float | None) -> bytes:
    found = b""
    while len(found) < count:
        if deadline is not None:
            connection.settimeout(max(_LEAST_SECONDS, deadline - time.monotonic()))
        part = connection.recv(count - len(found))
        if not part:
            raise EOFError("it has closed the connection")
        found += part
    return found
