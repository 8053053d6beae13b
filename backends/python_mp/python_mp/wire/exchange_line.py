"""Between a front and the exchange of its host: orders, JSON, a datagram each (SEQPACKET).

    front                                            exchange
    {"hosts": N}                                     {"leader": ADDRESS, "hosts": [[NAME, ADDRESS]]}
                                                     or {"missing": SENTENCE}
    {"expect": SOURCE}
    {"start": RANK, "spec": RankSpec} + descriptors
    {"kill": RANK}, {"stacks": RANK}

SOURCE is what `parse` makes a ModelConfig of: agents prepare themselves for its ranks.
A front has a connection for each generation; with it go the ranks that were started over it.
A rank's descriptors, in this order: the exchange's end of its socket, the arena, the file for
stacks, the file where `Vitals` are, and a pipe, whose end of file is the rank's end; what it says
before that is `End`.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ..machine.vital import Vital

VARIABLE = "PYTHON_MP_EXCHANGE"
"""In the environment of fronts: the name of the exchange's socket. There is no file of it, so that
nothing can be left behind."""
MAX_ORDER = 1 << 20
DESCRIPTORS = 5
_VITALS = struct.Struct("<cxxxId")


@dataclass(frozen=True)
class End:
    """How a rank on another host has ended: by itself, or with its host."""

    code: int | None = None
    """Its exit code, or minus the signal's number."""
    lost: str = ""
    """Why nobody knows: what became of its host; a sentence."""

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> End:
        """Nothing was said where the exchange itself is gone."""
        return cls(**json.loads(data)) if data else cls(lost="the exchange on this host has ended")


class Vitals(NamedTuple):
    """What a host's last heartbeat says of a rank, in a file of memory."""

    fd: int

    def write(self, pid: int, vital: Vital) -> None:
        os.pwrite(self.fd, _VITALS.pack(vital.state.encode()[:1], pid, vital.cpu_seconds), 0)

    def read(self) -> Vital:
        """One of which nothing was heard yet sleeps."""
        state, _, seconds = self._read()
        return Vital(state.decode(), seconds)

    def pid(self) -> int:
        """On its host; 0 as long as nothing was heard."""
        return self._read()[1]

    def _read(self) -> tuple[bytes, int, float]:
        said = os.pread(self.fd, _VITALS.size, 0)
        return _VITALS.unpack(said) if len(said) == _VITALS.size else (b"S", 0, 0.0)


def address(name: str) -> str:
    """Of a socket of that name; see unix(7), abstract socket address."""
    return f"\0{name}"
