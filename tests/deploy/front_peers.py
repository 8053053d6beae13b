"""What stands behind a front in tests: a name server, and upstreams that are no Triton."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MUCH = (1 << 30).to_bytes(4, "big")
ANY_AMOUNT = b"\0\0\6\4\0\0\0\0\0" + b"\0\4" + MUCH + b"\0\0\4\x08\0\0\0\0\0" + MUCH
"""SETTINGS and WINDOW_UPDATE: so much may be sent."""


class NameServer:
    """Answers for every name with `addresses`, which may be changed."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while query := self._socket.recvfrom(512):
            if not query[0]:
                return
            self._socket.sendto(self._reply(query[0]), query[1])

    def _reply(self, query: bytes) -> bytes:
        addresses = list(self.addresses)
        code = 0x8180 if addresses else 0x8183  # NXDOMAIN
        header = query[:2] + struct.pack(">5H", code, 1, len(addresses), 0, 0)
        end = query.index(b"\0", 12) + 5
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">2HIH", 1, 1, 0, 4) + socket.inet_aton(address)
            for address in addresses
        )
        return header + query[12:end] + records


@dataclass
class Upstream:
    """Takes connections on an address, keeps what it is sent, and after `delay` seconds answers
    with `reply`; without one it closes. Where there is a `part`, it is sent again and again, with
    pauses, until the other side goes away, and then it has `left`."""

    address: str
    port: int
    reply: bytes = b""
    delay: float = 0.0
    ready: bytes = b""
    part: bytes = b""
    pause: float = 0.02
    requests: list[bytes] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._listener = socket.create_server((self.address, self.port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with suppress(OSError):  # ended before
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(5.0)
                request = _request(connection)
                if request.startswith(b"GET /ready HTTP/1.0"):  # of peers.sh, each second
                    connection.sendall(self.ready)
                    continue
                self.requests.append(request)
                self._ended.wait(self.delay)
                connection.sendall(self.reply)
                self._go_on(connection)

    def _go_on(self, connection: socket.socket) -> None:
        try:
            while self.part and not self._ended.wait(self.pause):
                connection.sendall(self.part)
        except OSError:
            self.left.set()


def _request(connection: socket.socket) -> bytes:
    """One over HTTP/1.1, to the end of its body; over HTTP/2 to the end of the call's stream."""
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv(1 << 16)):
        data += more
    if data.startswith(PREFACE):
        connection.sendall(ANY_AMOUNT)
        while not _has_ended(data) and (more := connection.recv(1 << 16)):
            data += more
        return data
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0].split(b":")[1]) - len(body) if lengths else 0
    while missing > 0 and (more := connection.recv(1 << 16)):
        data, missing = data + more, missing - len(more)
    return data


def _has_ended(data: bytes) -> bool:
    """Whether a frame of HTTP/2 says that no more comes."""
    at = len(PREFACE)
    while len(data) >= at + 9:
        kind, flags = data[at + 3 : at + 5]
        if kind <= 1 and flags & 1:
            return True
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    return False
