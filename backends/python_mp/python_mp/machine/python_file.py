"""A Python file of a model's, run as a module, which may import the files and packages beside it.

Only these files see each other: two models may both have a `blocks.py`, in one process, and nobody
else's import finds either.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, resolve_name, spec_from_file_location
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_NUMBERS = count()


def load(path: Path, name: str) -> ModuleType:
    """Raises what the file raises."""
    return _Folder(path.parent).run(path, name)


def beside(folder: Path, name: str) -> Path | None:
    """Where a folder has the module `name` (dotted, in its packages): a file; the folder of a
    package without `__init__.py`; or nothing."""
    place = folder.joinpath(*name.split("."))
    for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            return path
    return place if any(place.glob("*.py")) else None


class _Unchanging(SourceFileLoader):
    """Leaves no bytecode beside the source, which nothing may change; that would also be taken for
    the source's, where it was edited within the same second."""

    def set_data(self, path: str, data: Buffer, *, _mode: int = 0o666) -> None:
        pass


class _Folder:
    """The modules of a folder, each run once, when it is first imported."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._package = f"model{next(_NUMBERS)}"
        self._modules = {"": ModuleType(self._package)}

    def run(self, path: Path, name: str) -> ModuleType:
        full = f"{self._package}.{name}"
        spec = spec_from_file_location(full, path, loader=_Unchanging(full, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        self._modules[name] = sys.modules[full] = module  # Decorators look their module up there.
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del self._modules[name]
            raise
        finally:
            del sys.modules[full]
        return module

    def _import(
        self,
        name: str,
        given: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What the statement `import` calls in the folder's files."""
        if level:
            package = (given or {}).get("__package__") or self._package
            name = resolve_name("." * level + name, package)[len(self._package) + 1 :]
        elif self._find(name.partition(".")[0]) is None:
            return builtins.__import__(name, given, local, fromlist or (), level)
        module = self._module(name)
        if not fromlist:
            return self._module(name.partition(".")[0])
        for each in fromlist:
            inner = f"{name}.{each}".lstrip(".")
            if not hasattr(module, each) and each.isidentifier() and self._find(inner):
                self._module(inner)
        return module

    def _find(self, name: str) -> Path | None:
        return beside(self._folder, name)

    def _module(self, name: str) -> ModuleType:
        """With the packages that it is in, which have it as an attribute."""
        if name in self._modules:
            return self._modules[name]
        parent, _, last = name.rpartition(".")
        owner, path = self._module(parent), self._find(name)
        if path is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if path.is_dir():
            self._modules[name] = ModuleType(f"{self._package}.{name}")
        else:
            self.run(path, name)
        setattr(owner, last, self._modules[name])
        return self._modules[name]
