"""The gateway, OpenAI's interface, beside a server: started again after each death."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Self

from python_mp.machine.net import Net
from server import token
from server.errors import ServerError
from server.process.beside import Beside, spawn
from server.settings import Settings


class Companion(Beside):
    """A context in which `python -m gateway` runs."""

    KILL_AFTER = 10.0  # for answers in flight, once Triton has ended

    def __init__(self, settings: Settings, net: Net, say: Callable[[str], None]) -> None:
        super().__init__("the gateway", net, say)
        self._settings = settings

    def __enter__(self) -> Self:
        """Raises ServerError where it cannot work: by its port, or by how Triton listens."""
        if not self._settings.plain_grpc:
            raise ServerError("--openai needs Triton's gRPC, without TLS and with our own token")
        self._settings.endpoints.listen("openai").close()
        self._say(f"OpenAI's interface: {self._settings.endpoints.openai_url}")
        return super().__enter__()

    def start(self) -> subprocess.Popen[str]:
        endpoints = self._settings.endpoints
        return spawn(
            "gateway",
            f"--triton={endpoints.grpc_url}",
            f"--host={endpoints.host}",
            f"--port={endpoints.openai}",
            environment={token.VARIABLE: self._settings.token},
            output=None,
        )
