"""Between the front and a rank: a socket of messages, one a datagram (SEQPACKET).

End of file is the death of the other side.
"""

from __future__ import annotations

import socket

from .message import MAX_MESSAGE, Message


class Connection:
    """One end of a front-to-rank socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @classmethod
    def pair(cls) -> tuple[Connection, Connection]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Message | bytes) -> None:
        """Raises OSError when the other side is gone."""
        self.socket.send(message if isinstance(message, bytes) else message.encode())

    def receive(self, *, wait: bool = True) -> Message | None:
        """The next message; None at end of file.

        Raises:
            BlockingIOError: there is none yet, and `wait` is False.
        """
        try:
            data = self.socket.recv(MAX_MESSAGE, 0 if wait else socket.MSG_DONTWAIT)
        except ConnectionResetError:
            return None
        return Message.decode(data) if data else None

    def close(self) -> None:
        self.socket.close()
