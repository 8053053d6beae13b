"""What tests of deploy/ need of the machine."""

import os
import shutil
from collections.abc import Callable

import pytest

# Debian's names; other systems have similar ones.
PACKAGES = {
    "curl": "curl",
    "docker": "docker.io docker-compose",
    "docker-compose": "docker.io docker-compose",
    "kubectl": "kubernetes-client",
    "nginx": "nginx-light libnginx-mod-http-js",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of a program; without it the test is skipped, or with REQUIRE_PROGRAMS fails."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        if path is None:
            missing = f"{name} is not installed (Debian: apt-get install {PACKAGES[name]})"
            if os.environ.get("REQUIRE_PROGRAMS"):
                pytest.fail(missing)
            pytest.skip(missing)
        return path

    return find
