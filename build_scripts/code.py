"""Which code and which tools decide an outcome: a module, and all of the project that it imports,
however deep; read from the sources, so that nobody has to keep a list.

An import inside a function counts, one under TYPE_CHECKING or `if __name__ == "__main__"` does not.
Of code that is not the project's, the versions of the libraries it imports count too; the project's
stages name theirs (TOOLS).

The project's extensions count by their C, `_shm` by the folder `shm`, whoever compiled it.

A text that is a module's name ("python_mp.rank.forkserver") counts as its import, since processes
are started by it; a text that begins as a package's (f"{__name__}.{engine}") as that of all it has.
"""

import ast
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import python_mp
from build_scripts import storage
from python_mp.machine import python_file

ROOTS = {
    "build_scripts": Path(__file__).parent,
    "python_mp": Path(python_mp.__file__ or "").parent,
}
"""Of the project's packages. Others count unless they came with Python or by pip."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of what came by pip or with the system; an environment may see those of another."""
SUFFIXES = (".py", *EXTENSION_SUFFIXES)
IMPORTERS = ("import_module", "__import__")
SHOWN = "rich"
"""Draws progress, and decides nothing."""
NAME = re.compile(r"[a-zA-Z_]\w*(\.\w+)+")


def hashes(module: str) -> dict[str, str]:
    """Of the module's file and all that it imports, by the modules' names."""
    return _hashed(_closure([module]))


def of_file(path: Path) -> dict[str, str]:
    """The same of a file of a model's, which is no module of a package, with the versions of the
    libraries that it and what it imports use."""
    found = _closure(_imported("", path), path.parent)
    libraries = _libraries({"": path, **_theirs(found)})
    return {path.name: storage.sha256(path), **_hashed(found), **libraries}


def files(path: Path) -> dict[str, Path]:
    """A file of a model's and those beside it that it imports, by their names in its folder."""
    found = [path, *_closure(_imported("", path), path.parent).values()]
    folder = path.parent
    return {str(p.relative_to(folder)): p for p in found if p.is_relative_to(folder)}


def load(path: Path) -> ModuleType:
    """A file of a model's, run as a module."""
    return python_file.load(path, f"{path.parent.name}_{path.stem}")


def _closure(names: Iterable[str], folder: Path | None = None) -> dict[str, Path]:
    """The files of the modules and of all that they import, by the modules' names, sorted; `folder`
    is that of a model's file, which finds there first what it imports, as do those beside it."""
    found: dict[str, Path] = {}
    waiting = [(name, folder) for name in names]
    while waiting:
        name, near = waiting.pop()
        if name not in found and (path := _beside(near, name) or _file(name)):
            found[name] = path
            near = near if near and path.is_relative_to(near) else None
            waiting += [(each, near) for each in (*_parents(name), *_imported(name, path))]
    return dict(sorted(found.items()))


def _hashed(found: Mapping[str, Path]) -> dict[str, str]:
    return {name: _hash(path) for name, path in found.items()}


def _hash(path: Path) -> str:
    if path.is_dir():
        return storage.digest({n: storage.sha256(f) for n, f in storage.files(path).items()})
    return storage.sha256(path)


def _theirs(found: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in found.items() if name.partition(".")[0] not in ROOTS}


def _libraries(files: Mapping[str, Path]) -> dict[str, str]:
    """Versions of the distributions that these files import."""
    tops = {each.partition(".")[0] for name in files for each in _imported(name, files[name])}
    known, passed_over = _distributions(), {*ROOTS, SHOWN}
    tools = {tool for top in tops - passed_over for tool in known.get(top, ())}
    return {f"library {tool}": found for tool, found in versions(tuple(sorted(tools))).items()}


_distributions = cache(packages_distributions)


@cache
def versions(tools: Iterable[str]) -> dict[str, str]:
    """Installed versions of those distributions that are installed."""
    found = {}
    for tool in tools:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _beside(folder: Path | None, name: str) -> Path | None:
    if folder is None or not all(part.isidentifier() for part in name.split(".")):
        return None
    path = python_file.beside(folder, name)
    return path if path and path.is_file() else None


def _file(name: str) -> Path | None:
    """The source of a module that counts."""
    top, *rest = name.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):
        return None
    root = ROOTS.get(top) or _elsewhere(top)
    if root is None:
        return None
    if not root.is_dir():
        return None if rest else root
    base = root.joinpath(*rest)
    sources = base.with_name(base.name.removeprefix("_"))
    if (sources / "module.c").is_file():
        return sources
    files = [base / "__init__.py", *(base.with_name(base.name + each) for each in SUFFIXES)]
    return next((file for file in files if file.is_file()), None)


@cache
def _elsewhere(top: str) -> Path | None:
    """The folder or file of somebody's own package, or module, on Python's path."""
    if top in sys.stdlib_module_names:
        return None
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    places = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
    if not places:
        return None
    path = Path(places)  # of a package without __init__.py its folder
    if INSTALLED & {*path.parts} or path.is_relative_to(sysconfig.get_path("stdlib")):
        return None
    if path.name == "__init__.py":
        return path.parent
    return path if path.is_dir() or path.name.endswith(SUFFIXES) else None


def _imported(name: str, path: Path) -> tuple[str, ...]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return _imports(path, name, package, path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _imports(path: Path, name: str, package: str, _state: int) -> tuple[str, ...]:
    if path.suffix != ".py":
        return ()
    found: list[str] = []
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # whoever runs it says so
        return ()
    for node in _run(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(IMPORTERS):
            found += [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
        elif isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            inner = (f"{base}.{each.name}".lstrip(".") for each in node.names)
            found += [base, *inner]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [node.value] if NAME.fullmatch(node.value) else []
        elif isinstance(node, ast.JoinedStr):
            found += _all_of(_beginning(node, name, package))
    return tuple(found)


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """What is run when the module is imported or used."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _is_aside(node.test):
            for other in node.orelse:
                yield other
                yield from _run(other)
            continue
        yield node
        yield from _run(node)


def _is_aside(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")


def _base(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}".lstrip(".") if node.module else base


def _beginning(node: ast.JoinedStr, name: str, package: str) -> str:
    """Of a text that is put together, what is known of its start."""
    known = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            known += str(part.value)
        elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
            if part.value.id not in ("__name__", "__package__"):
                break
            known += name if part.value.id == "__name__" else package
        else:
            break
    return known


def _all_of(beginning: str) -> list[str]:
    """The modules of a package, given the start of their names."""
    package, dot, _ = beginning.rpartition(".")
    folder = _file(package) if dot and NAME.fullmatch(f"x.{package}") else None
    if folder is None or folder.name != "__init__.py":
        return []
    return [f"{package}.{path.stem}" for path in folder.parent.glob("*.py") if path != folder]
