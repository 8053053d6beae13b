"""Where tritonserver and its Python backend lie, and what they need around them."""

import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.errors import ServerError

PROJECT = Path(__file__).resolve().parents[2]
CONTAINER = Path("/opt/tritonserver")
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A tritonserver that is there to be used."""

    binary: Path
    backends: Path
    caches: Path
    stub: Path
    libraries: tuple[Path, ...]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment for tritonserver, its stubs and their ranks.

        The stub ignores PYTHONPATH and PYTHONHOME and finds its packages by PATH. Without the
        interpreter's own LIBDIR it may load another libpython of the same minor version.
        """
        libraries = [*map(str, self.libraries), sysconfig.get_config_var("LIBDIR") or ""]
        inherited = base.get("LD_LIBRARY_PATH", "")
        return {
            **base,
            "PATH": f"{Path(sys.executable).parent}:{base.get('PATH', '/usr/bin:/bin')}",
            "LD_LIBRARY_PATH": ":".join(filter(None, [*libraries, inherited])),
        }

    def assemble_backends(self, folder: Path) -> None:
        """Fill a new `folder` for --backend-directory: what is installed, and python_mp.

        Triton looks for the stub beside the Python backend's library, and the wheel keeps it
        elsewhere, so `python` is made here. Its files are copies: for python_mp's models Triton
        refuses a library that a link leads out of the backend folder.
        """
        folder.mkdir()
        for backend in self.backends.iterdir():
            if backend.name not in ("python", "python_mp"):
                (folder / backend.name).symlink_to(backend)
        python = folder / "python"
        python.mkdir()
        for file in (self.backends / "python").iterdir():
            if file.name not in (STUB, "__pycache__"):
                shutil.copy2(file, python / file.name)
        shutil.copy2(self.stub, python / STUB)
        (folder / "python_mp").symlink_to(PROJECT / "backends" / "python_mp")


def find() -> Installation:
    """The container's tritonserver where there is one, else the wheel's.

    Raises:
        ServerError: neither is there, or it has no stub for this Python.
    """
    installation = _in_container() or _in_wheel()
    if installation is None:
        raise ServerError("there is no tritonserver: run 'make install', or use NVIDIA's container")
    if not installation.stub.is_file():
        version = sysconfig.get_python_version()
        raise ServerError(f"{installation.binary} has no Python backend for Python {version}")
    return installation


def _in_container() -> Installation | None:
    if not (CONTAINER / "bin" / "tritonserver").is_file():
        return None
    return Installation(
        binary=CONTAINER / "bin" / "tritonserver",
        backends=CONTAINER / "backends",
        caches=CONTAINER / "caches",
        stub=CONTAINER / "backends" / "python" / STUB,
        libraries=(CONTAINER / "lib",),
    )


def _in_wheel() -> Installation | None:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    home = package / "tritonserver"
    return Installation(
        binary=home / "bin" / "tritonserver",
        backends=home / "backends",
        caches=home / "caches",
        stub=home / "python_backend_stubs" / sysconfig.get_python_version() / STUB,
        libraries=(package.parent / "nvidia_pytriton.libs",),
    )
