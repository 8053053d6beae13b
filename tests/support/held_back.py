"""A cable that takes its time: packets between two TUN devices, each held back for so long.

    python held_back.py ONE OTHER SECONDS

It makes both devices where it is started, and says that it is ready; one may then be moved.
"""

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def relay(ends: tuple[int, int], seconds: float) -> None:
    held: deque[tuple[float, int, bytes]] = deque()
    while True:
        wait = max(held[0][0] - time.monotonic(), 0.0) if held else None
        for end in select.select(ends, [], [], wait)[0]:
            other = ends[1] if end == ends[0] else ends[0]
            for packet in arrived(end):
                held.append((time.monotonic() + seconds, other, packet))
        while held and held[0][0] <= time.monotonic():
            _, end, packet = held.popleft()
            with suppress(OSError):  # The device is down, or has no room: a packet is lost.
                os.write(end, packet)


def arrived(end: int) -> list[bytes]:
    packets = []
    try:
        while True:
            packets.append(os.read(end, 1 << 16))
    except OSError:  # No more, or the device is down.
        return packets


if __name__ == "__main__":
    ends = tun(sys.argv[1]), tun(sys.argv[2])
    print("ready", flush=True)
    relay(ends, float(sys.argv[3]))
