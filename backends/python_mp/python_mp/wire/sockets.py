"""Between the front and a rank: a socket of messages, one a datagram (SEQPACKET).

End of file is the death of the other side.
"""

from __future__ import annotations

import os
import socket
import struct

from .message import MAX_MESSAGE, Message

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: see unix(7), SO_PEERCRED


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


def is_of_this_user(connection: socket.socket) -> bool:
    """Whether the other side is a process of the user that runs this one."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(raw)[1] == os.geteuid())
