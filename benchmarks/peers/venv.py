"""A peer's virtual environment, made once and anew when what it needs has changed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.peers.peer import Packages
from server.process.installation import PROJECT

FOLDER = PROJECT / "build" / "peers"


class NotInstalled(Exception):
    """pip could not; the message is its last line."""


def python(packages: Packages | None) -> str:
    """The interpreter of this environment, which is made where it is not there.

    Raises:
        NotInstalled: pip could not.
    """
    if packages is None:
        return sys.executable
    folder = FOLDER / packages.name
    interpreter, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(f"{packages} {sys.version}".encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _call([sys.executable, "-m", "venv", str(folder)])
        if not packages.alone:
            _share(folder)
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _call([*pip, *packages.requirements])
        if packages.unwanted:
            _call([str(interpreter), "-m", "pip", "uninstall", "--yes", *packages.unwanted])
        stamp.write_text(wanted)
    return str(interpreter)


def _share(folder: Path) -> None:
    """Our packages behind its own, for pip too: what is here already is not installed again."""
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (site / "site-packages" / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "WARNING" not in line]
        raise NotInstalled(lines[-1] if lines else f"status {done.returncode}")
