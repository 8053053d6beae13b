"""Which lines of a module's functions a test never runs: what is not run is not checked."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

Line = tuple[str, int]
Case = Callable[[Path, pytest.MonkeyPatch], None]


def unreached(run: Callable[[], None], *modules: ModuleType) -> list[str]:
    """Lines inside functions of `modules` that `run()` does not reach, as `file:line: source`."""
    files = [str(module.__file__) for module in modules]
    reached = set[Line]()

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return [_shown(line) for file in files for line in sorted(_lines(file)) if line not in reached]


def unreached_by(cases: Sequence[Case], folder: Path, *modules: ModuleType) -> list[str]:
    """The same of all cases, each in a folder and with patches of its own."""

    def run() -> None:
        for case in cases:
            own = folder / case.__name__
            own.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                case(own, patch)

    return unreached(run, *modules)


def _lines(file: str) -> set[Line]:
    module = compile(Path(file).read_text(), file, "exec")
    return {(file, line) for code in _functions(module) for line in _own(code)}


def _functions(code: CodeType) -> Iterator[CodeType]:
    """What runs when it is called, and not when the module is imported."""
    for inner in (constant for constant in code.co_consts if isinstance(constant, CodeType)):
        if inner.co_flags & 0x02:  # CO_NEWLOCALS: a function; a class's body is not one.
            yield inner
        yield from _functions(inner)


def _own(code: CodeType) -> set[int]:
    """A function's lines, but that of its `def`."""
    return {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno}


def _shown(line: Line) -> str:
    file, number = line
    return f"{Path(file).name}:{number}: {Path(file).read_text().splitlines()[number - 1].strip()}"
