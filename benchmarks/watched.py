"""`python -m server` while a benchmark lasts, on ports that are free."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from server.endpoints import VARIABLES, Endpoints

START_SECONDS = 300.0
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def watched(
    repository: Path | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[tuple[int, Endpoints]]:
    """The watcher's pid, and where it listens, once all models are ready. Without a repository it
    is the project's, with the gateway beside it; its own lines go to standard error where one is
    given.

    Raises:
        SystemExit: it ends before, or takes 300 s.
    """
    endpoints = Endpoints.free()
    ports = {variable: str(getattr(endpoints, name)) for name, variable in VARIABLES.items()}
    option = f"--model-repository={repository}" if repository else "--openai"
    command = [sys.executable, "-m", "server", option]
    with subprocess.Popen(
        command,
        env={**os.environ, **ports, **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if repository else subprocess.DEVNULL,
    ) as server:
        try:
            _wait_until_ready(server, f"{endpoints.health_url}/ready")
            yield server.pid, endpoints
        finally:
            server.terminate()
            server.wait(60)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), _NO_PROXY.open(url, timeout=5):
            return
        time.sleep(0.5)
    raise SystemExit("the server did not become ready; `python -m server` says why")
