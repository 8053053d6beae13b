"""A front that hangs does not outlive its server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.harness import alive, children, until

FRONT = """
import sys, time
from python_mp.front.nursery import Nursery
nursery = Nursery("echo", int(sys.argv[1]))
print("up", flush=True)
time.sleep(600)
"""


def test_a_stuck_front_ends_with_its_server() -> None:
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    backend = Path(__file__).parents[2] / "backends" / "python_mp"
    arguments = [sys.executable, "-c", FRONT, str(server.pid)]
    with subprocess.Popen(
        arguments, env={"PYTHONPATH": str(backend)}, stdout=subprocess.PIPE
    ) as front:
        assert front.stdout is not None
        assert front.stdout.readline() == b"up\n"
        until(lambda: len(children(front.pid)) == 1)
        (nursery,) = children(front.pid)
        until(lambda: "rank.nursery" in Path(f"/proc/{nursery}/cmdline").read_text())
        server.kill()
        assert front.wait(10) == -9
    until(lambda: not alive(nursery))
    server.wait()
