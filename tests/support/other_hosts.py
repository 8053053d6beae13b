"""Exchange and agents as processes, on loopback, where the other hosts are only other processes."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from python_mp.model.config import ModelConfig
from python_mp.wire.exchange_line import VARIABLE
from tests.support.configs import echo_config
from tests.support.processes import ENVIRONMENT, ROOT

SECONDS = 30.0
QUICK = ("--lease-seconds", "2")


class Program:
    """A process whose lines are kept, and can be waited for.

    Args:
        by: a command that executes the rest of its line.
    """

    def __init__(
        self, module: str, *arguments: object, by: Sequence[object] = (), **environment: str
    ) -> None:
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self.process = subprocess.Popen(
            [*map(str, by), sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
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
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                with self._heard:
                    self.lines.append(line.rstrip("\n"))
                    print(line, end="", flush=True)  # For whoever reads of a failure.
                    self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()


class Hosts:
    """A exchange and its agents; killed at the end."""

    def __init__(self, runtime: Path, held: ExitStack, options: Sequence[object] = QUICK) -> None:
        self._held = held
        self._runtime = runtime
        self._name = f"python_mp-test-{os.getpid()}-{runtime.name}"
        patch = held.enter_context(pytest.MonkeyPatch.context())
        patch.setenv(VARIABLE, self._name)
        self._options = options
        self.agents: dict[str, Program] = {}
        self.port = 0
        self.exchange = self.start_exchange()

    def start_exchange(self) -> Program:
        """On the same port, where it was there before."""
        options = "--port", self.port, *self._options
        self.exchange = self.started("python_mp.agent.exchange_server", self._name, *options)
        self.port = int(self.exchange.says(r"may connect to .*:(\d+)")[1])
        return self.exchange

    def agent(self, name: str, *options: object) -> Program:
        """Started, not yet connected."""
        where = "--connect", f"127.0.0.1:{self.port}", "--name", name
        cache = "--cache", self._runtime / f"cache of {name}"
        started = self.started("python_mp.agent", *where, *cache, *options)
        self.agents.setdefault(name, started)
        if self.agents[name].process.poll() is not None:
            self.agents[name] = started
        return started

    def connected(self, name: str, *options: object) -> Program:
        agent = self.agent(name, *options)
        agent.says("connected to")
        return agent

    def started(self, module: str, *arguments: object) -> Program:
        program = Program(module, *arguments)
        self._held.callback(program.kill)
        return program


def echo(folder: Path, pp: int = 2, count: int = 2, **more: object) -> ModelConfig:
    """A model of so many stages, a rank each, on so many hosts; what they compute is echo's."""
    (folder / "echo" / "1").mkdir(parents=True)
    sizes = {"pipeline_parallel_size": pp, "hosts": count, "hang_seconds": 1}
    return echo_config(folder / "echo", **sizes, **more)


def certificate(folder: Path) -> tuple[Path, Path]:
    """One for loopback, which signs itself, and its key."""
    found, key = folder / "tls.crt", folder / "tls.key"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    made += ["-keyout", str(key), "-out", str(found)]
    subprocess.run(made, check=True, capture_output=True)
    return found, key


@contextmanager
def hosts(runtime: Path, *agents: str) -> Iterator[Hosts]:
    """A exchange, and these agents, which are connected."""
    with ExitStack() as held:
        made = Hosts(runtime, held)
        for name in agents:
            made.connected(name)
        yield made
