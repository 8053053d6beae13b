"""The gateway, OpenAI's interface, beside a server: started again after each death."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from python_mp.machine.net import Net
from python_mp.machine.thread import Thread
from server import token
from server.errors import ServerError
from server.process import child
from server.process.installation import PROJECT
from server.settings import Settings
from server.watch.backoff import Backoff

KILL_AFTER = 10.0  # seconds for answers in flight, once Triton has ended


class Companion:
    """A context in which `python -m gateway` runs. It dies with this process.

    Args:
        net: takes what goes wrong here.
        say: takes the lines meant for the user.
    """

    def __init__(self, settings: Settings, net: Net, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._net = net
        self._say = say
        self._backoff = Backoff()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the child with the thread that started it, so this one does nothing else.
        self._thread = Thread(target=self._watch, name="gateway", daemon=True)

    def __enter__(self) -> Self:
        """Raises ServerError where it cannot work: by its port, or by how Triton listens."""
        if not self._settings.plain_grpc:
            raise ServerError("--openai needs Triton's gRPC, without TLS and with our own token")
        self._settings.endpoints.listen("openai").close()
        self._thread.start()
        self._say(f"OpenAI's interface: {self._settings.endpoints.openai_url}")
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed.set()
            if self._process is not None:
                self._process.terminate()
        self._thread.join(KILL_AFTER)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._thread.join()

    def _watch(self) -> None:
        self._net.loop("the gateway", self._live, self._closed)

    def _live(self) -> None:
        """From a start to the end, and the pause before the next one."""
        with self._lock:
            if self._closed.is_set():
                return
            self._process = self._start()
        code = self._process.wait()
        if not self._closed.is_set():
            due = self._backoff.failed(time.monotonic())
            self._say(f"the gateway ended with status {code}; starting it again")
            self._closed.wait(due - time.monotonic())

    def _start(self) -> subprocess.Popen[bytes]:
        endpoints = self._settings.endpoints
        options = [f"--triton={endpoints.grpc_url}", f"--host={endpoints.host}"]
        command = [sys.executable, "-m", "gateway", *options, f"--port={endpoints.openai}"]
        file = child.hand_over(command)
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(file)],
                cwd=PROJECT,
                env={**os.environ, token.VARIABLE: self._settings.token},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[file],
            )
        finally:
            os.close(file)
