"""NVIDIA's Python bindings of TensorRT on a machine without TensorRT.

The wheel `tensorrt-cu13-bindings` holds every class, signature and enum, and needs shared libraries
only to load. Libraries that hold the symbols it names, and nothing in them, are compiled here.
"""

import ctypes
import importlib
import re
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


@cache
def bindings() -> ModuleType:
    """The bindings: of TensorRT itself where that is installed, else over empty libraries.

    They are not made importable as `tensorrt`, so that nobody takes them for the real thing.
    """
    spec = find_spec("tensorrt_bindings")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the TensorRT tests need the bindings: install requirements-dev.txt")
    try:
        return importlib.import_module("tensorrt_bindings")
    except ImportError:
        _load_empty_libraries(Path(spec.submodule_search_locations[0]) / "tensorrt.so")
        return importlib.import_module("tensorrt_bindings")


def _load_empty_libraries(extension: Path) -> None:
    """The loader takes a library that is there already, by its soname, for the one it looks for."""
    undefined = _output("nm", "-D", "--undefined-only", "--format=posix", str(extension))
    ours = [line.split()[0] for line in undefined.splitlines() if "@" not in line]
    symbols = [name for name in ours if not name.startswith(("_", "Py"))]
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols)
    needed = re.findall(r"\[(libnv[^]]+)]", _output("readelf", "-dW", str(extension)))
    with tempfile.TemporaryDirectory() as folder:
        for soname in needed:
            library = Path(folder) / soname
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(library)]
            subprocess.run([*command, "-xc", "-"], input=source, text=True, check=True)
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
