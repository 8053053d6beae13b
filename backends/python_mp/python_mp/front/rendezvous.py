"""Where ranks on several hosts meet: keys that each sets and gets, over their own sockets.

So no host needs a further port for it, and nobody else can take part. It lasts while the ranks of
one generation load; the rank's side is rank/control_store.py.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from ..wire.message import Kind, Message
from ..wire.sockets import Connection

_MOST_KEYS = 1 << 16


class Rendezvous:
    """
    What a rank asks, as JSON: `["set", key, value]`, `["add", key, number]`, `["get", key]`, which
    is answered once the key is there, and `["check", key...]`. Values are hexadecimal.
    """

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._waiting: list[tuple[str, Connection]] = []

    def hear(self, connection: Connection, text: str) -> None:
        """Raises ValueError where no rank of ours would ask that."""
        match json.loads(text):
            case ["set", str(key), str(value)]:
                self._set(key, value)
            case ["add", str(key), int(number)]:
                total = int(bytes.fromhex(self._values.get(key, "30"))) + number
                self._set(key, str(total).encode().hex())
                _answer(connection, total)
            case ["get", str(key)]:
                self._waiting.append((key, connection))
                self._serve()
            case ["check", *keys]:
                _answer(connection, all(key in self._values for key in keys))
            case _:
                raise ValueError("a rank asks for what there is not, where ranks meet")

    def _set(self, key: str, value: str) -> None:
        if len(self._values) >= _MOST_KEYS:
            raise ValueError("ranks set more keys than any of ours would")
        self._values[key] = value
        self._serve()

    def _serve(self) -> None:
        for key, connection in self._waiting:
            if key in self._values:
                _answer(connection, self._values[key])
        self._waiting = [each for each in self._waiting if each[0] not in self._values]


def _answer(connection: Connection, said: Any) -> None:
    with suppress(OSError):  # It is gone, and the inbox sees that, too.
        connection.send(Message(Kind.STORE, text=json.dumps(said)))
