"""Hub and agents as processes, on loopback, where the other hosts are only other processes."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.processes import ENVIRONMENT

SECONDS = 30.0
QUICK = ("--lease-seconds", "1")


class Program:
    """A process whose lines are kept, and can be waited for."""

    def __init__(self, module: str, *arguments: object, within: Sequence[str] = ()) -> None:
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", module, *map(str, arguments)],
            env=os.environ | ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def says(self, pattern: str, seconds: float = SECONDS, *, since: int = 0) -> re.Match[str]:
        """Waits for a line with it."""
        found: list[re.Match[str]] = []

        def is_there() -> bool:
            found.extend(m for line in self.lines[since:] if (m := re.search(pattern, line)))
            return bool(found) or self.process.poll() is not None

        with self._heard:
            self._heard.wait_for(is_there, seconds)
        assert found, (pattern, self.lines)
        return found[0]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            for line in lines:
                with self._heard:
                    self.lines.append(line.rstrip("\n"))
                    print(line, end="", flush=True)  # For whoever reads of a failure.
                    self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()


class Hosts:
    """A hub and its agents; killed at the end."""

    def __init__(self, runtime: Path, held: ExitStack, options: Sequence[object] = QUICK) -> None:
        self._held = held
        self._runtime = runtime
        self.hub = self.started("python_mp.agent.hub", runtime, "--port", 0, *options)
        self.port = int(self.hub.says(r"may connect to .*:(\d+)")[1])

    def agent(self, name: str, *options: object) -> Program:
        """Started, not yet connected."""
        where = "--connect", f"127.0.0.1:{self.port}", "--name", name
        cache = "--cache", self._runtime / f"cache of {name}"
        return self.started("python_mp.agent", *where, *cache, *options)

    def connected(self, name: str, *options: object) -> Program:
        agent = self.agent(name, *options)
        agent.says("connected to")
        return agent

    def started(self, module: str, *arguments: object) -> Program:
        program = Program(module, *arguments)
        self._held.callback(program.kill)
        return program


@contextmanager
def hosts(runtime: Path, *agents: str) -> Iterator[Hosts]:
    """A hub, and these agents, which are connected."""
    with ExitStack() as held:
        made = Hosts(runtime, held)
        for name in agents:
            made.connected(name)
        yield made
