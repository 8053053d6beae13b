"""The rank's side of front/rendezvous.py: what torch.distributed takes for a store."""

from __future__ import annotations

import json
import os
import socket
import threading
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import Store

from ..model.errors import GroupAborted
from ..wire.message import Kind, Message
from ..wire.sockets import Connection


class ControlStore(Store):
    """Of a rank that loads; once it serves its socket has batches, and nothing is asked any more.

    Args:
        control: the descriptor of the rank's socket.
    """

    def __init__(self, control: int) -> None:
        super().__init__()
        self._connection = Connection(socket.socket(fileno=os.dup(control)))
        self._lock = threading.Lock()
        self._known: dict[str, bytes] = {}

    def set(self, key: str, value: bytes | str) -> None:
        said = value.encode() if isinstance(value, str) else value
        self._known[key] = said
        self._say("set", key, said.hex())

    def get(self, key: str) -> bytes:
        """Waits until some rank has set it."""
        if key not in self._known:
            self._known[key] = bytes.fromhex(self._ask("get", key))
        return self._known[key]

    def add(self, key: str, number: int) -> int:
        return int(self._ask("add", key, number))

    def check(self, keys: list[str]) -> bool:
        return bool(self._ask("check", *keys))

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def close(self) -> None:
        """The rank serves from now on."""
        self._connection.close()

    def _say(self, *said: Any) -> None:
        self._connection.send(Message(Kind.STORE, text=json.dumps(said)))

    def _ask(self, *said: Any) -> Any:
        with self._lock:
            self._say(*said)
            answer = self._connection.receive()
        if answer is None:
            raise GroupAborted("the group ended while its ranks met")
        return json.loads(answer.text)
