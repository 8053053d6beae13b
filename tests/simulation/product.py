"""The product once more: its own modules, imported on the simulated machine."""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import python_mp
from python_mp.machine.vital import Vital, vital
from tests.support.triton_stub import run

from .modules import STANDS, here
from .triton import UTILS

_MODEL = Path(python_mp.__file__).parents[1] / "model.py"
_PACKAGE = "python_mp"


@contextmanager
def _instead(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Within it these are the modules of that name, and the product's are to be imported anew."""
    names = [n for n in sys.modules if n == _PACKAGE or n.startswith(f"{_PACKAGE}.")]
    before = {name: sys.modules.pop(name) for name in names}
    before |= {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n == _PACKAGE or n.startswith(f"{_PACKAGE}.")]:
            del sys.modules[name]
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _vital(pid: int) -> Vital:
    process = here.machine.processes.get(pid)
    if process is None:
        return vital(pid)
    state = "Z" if not process.alive else "T" if process.stopped else "S"
    return Vital(state, here.machine.now if process.works else 0.0)


def _load() -> SimpleNamespace:
    importlib.import_module("python_mp.machine.vital").vital = _vital
    names = (
        *("front.replica", "rank.main", "rank.engines.echo", "rank.engines.echo_decoder"),
        *("wire.arena", "wire.message", "wire.sockets", "model.rank_spec"),
    )
    modules = {n.rpartition(".")[2]: importlib.import_module(f"python_mp.{n}") for n in names}
    log = modules["main"].log = logging.Logger("simulated_ranks")  # They have no stub to log to.
    log.addHandler(logging.NullHandler())
    return SimpleNamespace(entry=run(_MODEL), **modules)


def load() -> SimpleNamespace:
    """Modules of the product by their last names, and `entry`, which is model.py."""
    utils = {UTILS.__name__: UTILS}
    with _instead(utils):
        _load()  # So that what it uses of the standard library is there, and is the real one.
    with _instead(STANDS | utils):
        return _load()
