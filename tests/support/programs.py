"""Programs that tests need of the machine."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import NoReturn

import pytest

# Debian's names; other systems have similar ones.
PACKAGES = {
    "curl": "curl",
    "docker": "docker.io docker-compose",
    "docker compose": "docker.io docker-compose",
    "kubectl": "kubernetes-client",
    "node": "nodejs",
    "npm": "npm",
    "nginx": "nginx-light libnginx-mod-http-js libnginx-mod-stream-js",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "strace": "strace",
}
Program = Callable[[str], str]


@pytest.fixture(scope="session")
def program() -> Program:
    """The path of a program; without it the test is skipped."""
    return lambda name: find(name) or skip(name)


@pytest.fixture(scope="session")
def composer(program: Program) -> Sequence[str]:
    """The command of Compose: Docker's plugin, or the program of old."""
    plugin = [program("docker"), "compose"]
    if subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    return [find("docker-compose") or skip("docker compose")]


def find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def skip(name: str) -> NoReturn:
    pytest.skip(f"{name} is not installed (Debian: apt-get install {PACKAGES[name]})")
