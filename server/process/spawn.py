"""tritonserver's process: its command line, its environment, and what it inherits."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from python_mp.agent import shared_token
from server import token
from server.process import child
from server.process.installation import Installation
from server.process.run import Run
from server.settings import Settings
from server.shell_names import plain

START_UP = Path(__file__).with_name("stub.sh")
# Triton keeps what its threads' many heaps once needed; with few heaps, reloads do not add up.
MEMORY = {"MALLOC_ARENA_MAX": "2"}


def spawn(
    found: Installation, settings: Settings, run: Run, models: list[str]
) -> subprocess.Popen[str]:
    """A tritonserver with these models, whose log comes out of its stdout.

    Raises:
        OSError: it cannot be started.
    """
    start_up = shutil.copy2(START_UP, run.folder)
    environment = found.environment({**MEMORY, **os.environ, **settings.environment})
    for secret in (token.VARIABLE, shared_token.VARIABLE):
        environment.pop(secret, None)  # models must not know it
    command = child.hand_over([str(found.binary), *_options(found, settings, run, models)])
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(command)],
            env={**environment, "PYTHON_MP_RUNTIME_DIR": str(run.folder), "BASH_ENV": start_up},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[run.lock, command],
        )
    finally:
        os.close(command)


def _options(found: Installation, settings: Settings, run: Run, models: list[str]) -> list[str]:
    backends = run.folder / "backends"
    found.assemble_backends(backends)
    shown = plain(settings.model_repository, run.folder / "models")
    return [
        f"--backend-directory={backends}",
        f"--cache-directory={found.caches}",
        *replace(settings, model_repository=shown).arguments(run.prefix, models),
    ]
