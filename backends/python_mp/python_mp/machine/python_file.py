"""A Python file of a model's, run as a module."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


class _Unchanging(SourceFileLoader):
    """Leaves no bytecode beside the source, which nothing may change; that would also be taken for
    the source's, where it was edited within the same second."""

    def set_data(self, path: str, data: Buffer, *, _mode: int = 0o666) -> None:
        pass


def load(path: Path, name: str) -> ModuleType:
    """Raises what the file raises."""
    spec = spec_from_file_location(name, path, loader=_Unchanging(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
