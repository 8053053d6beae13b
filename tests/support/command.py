"""`python -m server` as a child process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.control import Control
from server.endpoints import Endpoints
from server.process.installation import PROJECT
from server.process.run import SEGMENTS
from server.watch import stubs

TOKEN = "known-to-the-tests"
SERVER = ("-m", "server")


class Command:
    """One that was started, on ports of its own; leaving it kills it where it runs still."""

    def __init__(
        self,
        repository: Path,
        *options: str,
        program: Sequence[str] = SERVER,
        where: Path = PROJECT,
    ) -> None:
        self.repository = repository
        self.endpoints = Endpoints.free()
        self.control = Control(self.endpoints, TOKEN)
        self.process = subprocess.Popen(
            [sys.executable, *program, f"--model-repository={repository}", *options],
            cwd=where,
            env={**os.environ, **variables(self.endpoints), "ADMIN_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()

    def wait_ready(self) -> None:
        self.wait_for("Ctrl-C drains")

    def wait_for(self, text: str) -> str:
        """The next line that it prints with this text in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        pytest.fail(f"it ended:\n{self.output}")

    def end(self, signal: int | None = None) -> tuple[int, str]:
        """Sends the signal, if any, and waits for its end: exit status, output."""
        if signal is not None:
            self.process.send_signal(signal)
        stdout = self.process.stdout
        assert stdout is not None
        if not stdout.closed:
            self.output += self.process.communicate()[0]
        return self.process.returncode, self.output

    def health(self, path: str = "/ready", secret: str = TOKEN) -> tuple[int, dict[str, Any]]:
        """Status and body of a page of the watcher's."""
        url = self.endpoints.health_url + path
        request = urllib.request.Request(url, headers={"triton-admin": secret})
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def metric(self, name: str, **labels: str) -> float:
        """One of the watcher's own, tritonserver_NAME; NaN where it is not there."""
        with urllib.request.urlopen(f"{self.endpoints.health_url}/metrics", timeout=5) as page:
            families = text_string_to_metric_families(page.read().decode())
        for sample in (sample for family in families for sample in family.samples):
            if sample.name == f"tritonserver_{name}" and labels.items() <= sample.labels.items():
                return float(sample.value)
        return float("nan")

    @property
    def is_ready(self) -> bool:
        """Whether the watcher says that all is well."""
        return self.health()[0] == 200

    def model(self, name: str) -> dict[str, Any]:
        """What /status says of a model."""
        return dict(self.health("/status")[1]["models"].get(name, {}))

    def infer(self, value: float, model: str = "identity") -> float:
        """What a model of `python_models` answers; raises OSError."""
        return infer(self.endpoints, value, model)

    def answers(self, value: float = 2.5, model: str = "identity") -> bool:
        """Whether it gives the value back."""
        try:
            return self.infer(value, model) == value
        except OSError:
            return False

    @property
    def triton(self) -> int:
        """tritonserver's process id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def stubs(self, model: str) -> dict[str, int]:
        """The process ids of a model's stubs by the name of their instances."""
        return {s.instance: s.pid for s in stubs.living(self.triton) if s.model == model}

    @property
    def run(self) -> tuple[str, Path]:
        """The run's prefix of segments and its folder."""
        environment = Path(f"/proc/{self.triton}/environ").read_bytes().decode()
        folder = re.search(r"PYTHON_MP_RUNTIME_DIR=([^\0]+)", environment)
        assert folder is not None
        return f"{Path(folder[1]).name}_", Path(folder[1])

    def segments(self) -> set[str]:
        return {path.name for path in SEGMENTS.glob(f"{self.run[0]}*")}


def infer(
    endpoints: Endpoints, value: float, model: str = "identity", seconds: float = 60
) -> float:
    tensor = {"name": "IN", "shape": [1, 1], "datatype": "FP32", "data": [value]}
    url = f"http://{endpoints.http_url}/v2/models/{model}/infer"
    body = json.dumps({"inputs": [tensor]}).encode()
    with urllib.request.urlopen(url, body, timeout=seconds) as reply:
        return float(json.load(reply)["outputs"][0]["data"][0])


def assert_private(prefix: str) -> None:
    """Nobody else may read what clients send."""
    modes = {path.name: path.stat().st_mode & 0o077 for path in SEGMENTS.glob(f"{prefix}*")}
    assert len(modes) > 1
    assert set(modes.values()) == {0}, modes


def variables(endpoints: Endpoints) -> dict[str, str]:
    return {
        "HTTP_PORT": str(endpoints.http),
        "GRPC_PORT": str(endpoints.grpc),
        "METRICS_PORT": str(endpoints.metrics),
        "HEALTH_PORT": str(endpoints.health),
        "OPENAI_PORT": str(endpoints.openai),
        "AGENT_PORT": str(endpoints.agents),
    }


command = Command
