"""docker-compose.yml brought up as a project of its own, on free ports; gone at the end."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from server.endpoints import Endpoints
from server.process.installation import PROJECT
from tests.deploy.scraping import Api

TOKEN = "a-token-for-tests"
KEY = "an-api-key-for-tests"
RUNBOOKS = "https://example.com/runbooks"
UNPINNED = {
    "NGINX_IMAGE": "nginx:stable",
    "PROMETHEUS_TAG": "prom/prometheus:latest",
    "ALERTMANAGER_TAG": "prom/alertmanager:latest",
}
"""Where a machine cannot pull the pinned ones."""


class Stack:
    """The services of one compose project.

    Attributes:
        repository: a model repository as it is in a fresh clone.
        ports: on 127.0.0.1, by the variables of docker-compose.yml.
    """

    def __init__(self, compose: Sequence[str], docker: str, repository: Path) -> None:
        self._compose, self._docker = compose, docker
        self.repository = repository
        self.name = f"test{secrets.token_hex(4)}"
        free = [Endpoints.free(), Endpoints.free()]
        numbers = [port for each in free for port in (each.http, each.grpc, each.metrics)]
        names = ("HTTP", "GRPC", "TLS", "OPENAI", "PROMETHEUS", "ALERTMANAGER")
        self.ports = dict(zip((f"{name}_PORT" for name in names), numbers, strict=True))
        own = {name: str(port) for name, port in self.ports.items()}
        own |= self._at_hand() | {"RUNBOOKS": RUNBOOKS}
        own |= {"HOST": "127.0.0.1", "ADMIN_TOKEN": TOKEN, "MODEL_REPOSITORY": str(repository)}
        own |= {"GATEWAY_TOKEN": KEY, "AGENT_TOKEN": secrets.token_hex(32)}
        self._environment = {**os.environ, **own}

    def _at_hand(self) -> dict[str, str]:
        """The variables that choose images which are here already, whatever their tags."""
        return {
            variable: image.partition(":")[2] if variable.endswith("_TAG") else image
            for variable, image in UNPINNED.items()
            if subprocess.run([self._docker, "inspect", image], capture_output=True).returncode == 0
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("down", "--volumes", "--remove-orphans")
        assert self.left() == []

    def compose(self, *arguments: str) -> str:
        """What `docker compose ARGUMENTS` printed; raises where it failed."""
        return _run([*self._compose, "--project-name", self.name, *arguments], self._environment)

    def docker(self, *arguments: str) -> str:
        """What it printed."""
        return _run([self._docker, *arguments], dict(os.environ))

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", container))[0]
        return found

    def kill(self, container: str) -> None:
        """End the container's server as a crash would: Docker then follows its restart policy."""
        child = "open('/proc/1/task/1/children').read().split()[0]"
        kill = f"import os; os.kill(int({child}), 9)"
        # Not checked: it may be gone with the container before it could say so.
        subprocess.run([self._docker, "exec", container, "python", "-c", kill], capture_output=True)

    def left(self) -> list[str]:
        """Whatever of this project is still there."""
        label = f"label=com.docker.compose.project={self.name}"
        listings = [("ps", "--all"), ("network", "ls"), ("volume", "ls")]
        found = [self.docker(*each, "--quiet", "--filter", label).split() for each in listings]
        return [name for names in found for name in names]

    @property
    def prometheus(self) -> Api:
        return Api(f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}")

    def certificate(self, file: Path) -> Path:
        """The front's self-signed one, written to `file`."""
        file.write_text(self.compose("exec", "-T", "front", "cat", "/tmp/tls/tls.crt"))
        return file


def fresh_clone(folder: Path, owner: int, *, has_chat: bool = False) -> Path:
    """The project's models without what was built, in `folder`, which belongs to another user where
    this one may give things away. `chat`, whose build takes minutes, is there if that is said."""

    def built(parent: str, names: list[str]) -> set[str]:
        made = {name for name in names if (Path(parent) / name / "manifest.json").exists()}
        out = (".building-", "__pycache__", *(() if has_chat else ("chat",)))
        return made | {name for name in names if name.startswith(out)}

    shutil.copytree(PROJECT / "model_repository", folder, ignore=built)
    for path in [folder, *folder.rglob("*")] if os.getuid() == 0 else []:
        os.chown(path, owner, owner)
    return folder


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = re.sub(r"\x1b\[[0-9;]*\w", "", done.stdout + done.stderr)[-3000:]
        raise AssertionError(f"{' '.join(command)} exited with {done.returncode}:\n{said}")
    return done.stdout


def engine_answers(docker: str) -> bool:
    return subprocess.run([docker, "info"], capture_output=True).returncode == 0
