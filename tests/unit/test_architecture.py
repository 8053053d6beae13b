"""The house stays in order: who may import whom, no circles, no file name twice."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PROJECT = Path(__file__).parents[2]
ROOTS = {
    "python_mp": PROJECT / "backends/python_mp/python_mp",
    **{
        name: PROJECT / name
        for name in ("server", "gateway", "build_scripts", "clients", "benchmarks")
    },
}


def modules() -> dict[str, Path]:
    found = {}
    for name, root in ROOTS.items():
        for path in root.rglob("*.py"):
            if "models" not in path.parts:  # Triton's, not ours to import.
                dotted = ".".join((name, *path.relative_to(root).with_suffix("").parts))
                found[dotted.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def absolute(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    is_package = MODULES[module].name == "__init__.py"
    package = module.split(".")[: len(module.split(".")) - node.level + is_package]
    return ".".join([*package, *([node.module] if node.module else [])])


def imports(module: str) -> Iterator[str]:
    """Every module that it names, lazily and for type checkers too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            target = absolute(node, module)
            for alias in node.names:
                full = f"{target}.{alias.name}"
                yield full if full in MODULES else target


GRAPH = {module: set(imports(module)) - {module} for module in MODULES}


def test_no_module_leads_back_to_itself() -> None:
    ours = {module: needed & MODULES.keys() for module, needed in GRAPH.items()}
    TopologicalSorter(ours).prepare()  # or it raises, and names the circle


TORCH, TRITON = "torch", "triton_python_backend_utils"
FRONT, RANK, ENTRY = "python_mp.front", "python_mp.rank", "python_mp.triton"
NOT_FOR = {
    "python_mp.model": (TORCH, TRITON, FRONT, RANK, ENTRY, "python_mp.sharding"),
    "python_mp.wire": (TORCH, TRITON, FRONT, RANK, ENTRY, "python_mp.sharding"),
    "python_mp.machine": (TORCH, TRITON, FRONT, RANK, ENTRY, "python_mp.sharding"),
    "python_mp.front": (TORCH, TRITON, RANK, ENTRY, "python_mp.sharding"),
    "python_mp.triton": (TORCH, RANK, "python_mp.sharding"),
    "python_mp.rank": (TRITON, FRONT, ENTRY),
    "python_mp.sharding": (TRITON, FRONT, ENTRY),
    "python_mp": ("server", "build_scripts", "clients", "benchmarks"),
    "server": (TORCH, "build_scripts", "benchmarks", FRONT, RANK, ENTRY),
    "gateway": (
        TORCH,
        "python_mp",
        "build_scripts",
        "benchmarks",
        "server.process",
        "server.watch",
    ),
    "clients": (TORCH, "python_mp", "server", "gateway", "build_scripts", "benchmarks"),
}


def test_a_package_keeps_to_its_side() -> None:
    def within(name: str, whole: str) -> bool:
        return f"{name}.".startswith(f"{whole}.")

    wrong = [
        f"{module} imports {name}"
        for package, others in NOT_FOR.items()
        for module, names in GRAPH.items()
        for name in names
        if within(module, package) and any(within(name, each) for each in others)
    ]
    assert not wrong


TWICE = {"model.py", "module.py", "errors.py"}
"""Names that are a contract, or that each package has its own of."""


def test_no_file_name_is_there_twice() -> None:
    paths = PROJECT.glob("model_repository/*/*.py")
    names = Counter(path.name for path in (*MODULES.values(), *paths))
    dunder = {name for name in names if name.startswith("__")}
    assert not {name for name, count in names.items() if count > 1} - TWICE - dunder
