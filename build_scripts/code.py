"""Which code and which tools decide an outcome: a module, and all of the project that it imports,
however deep; read from the sources, so that nobody has to keep a list.

An import inside a function counts, one under TYPE_CHECKING or `if __name__ == "__main__"` does not.
A text that is a module's name ("python_mp.rank.nursery") counts as its import, since processes are
started by it; a text that begins as a package's (f"{__name__}.{engine}") as that of all it has.
"""

import ast
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import python_mp
from build_scripts import storage
from build_scripts.errors import BuildError

ROOTS = {
    "build_scripts": Path(__file__).parent,
    "python_mp": Path(python_mp.__file__ or "").parent,
}
"""Of the project's packages. Others count unless they came with Python or by pip."""
SUFFIXES = (".py", ".c")
NAME = re.compile(r"[a-zA-Z_]\w*(\.\w+)+")


def hashes(module: str) -> dict[str, str]:
    """Of the module's file and all that it imports, by the modules' names.

    Raises:
        BuildError: there is no such module.
    """
    if _file(module) is None:
        raise BuildError(f"{module} names no Python module that can be imported.")
    return _closure([module])


def of_file(path: Path) -> dict[str, str]:
    """The same of a file that is no module of a package."""
    imported = _closure(_imports(path, path.stem, "", path.stat().st_mtime_ns))
    return {path.name: storage.sha256(path), **imported}


def _closure(names: Iterable[str]) -> dict[str, str]:
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and (path := _file(name)):
            found[name] = path
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            state = path.stat().st_mtime_ns
            waiting += [*_parents(name), *_imports(path, name, package, state)]
    return {name: storage.sha256(path) for name, path in sorted(found.items())}


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
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    installed = (sysconfig.get_path(each) for each in ("purelib", "platlib", "stdlib"))
    if any(path.is_relative_to(each) for each in installed) or path.suffix != ".py":
        return None
    return path.parent if path.name == "__init__.py" else path


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
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            found += [base, *(f"{base}.{each.name}" for each in node.names)]
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
    return f"{base}.{node.module}" if node.module else base


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
