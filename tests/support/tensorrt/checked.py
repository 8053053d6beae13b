"""Objects that stand for TensorRT's, and allow only what the real classes have.

Each attribute must exist there, and the arguments of each call must fit a documented signature in
number and names. pybind11's functions have their signatures in docstrings only.
"""

import inspect
import re
from collections.abc import Callable
from inspect import Parameter
from types import ModuleType
from typing import Any

REAL = ("Logger", "IProgressMonitor", "IErrorRecorder", "__version__", "__spec__")
"""What the bindings can do without a library; enums, too."""
Members = dict[str, Any]


def signatures(documented: Any) -> list[inspect.Signature]:
    """Of a function's overloads, without `self`."""
    found = re.findall(r"^(?:\d+\. )?\w*\((.*)\) ->", documented.__doc__ or "", re.MULTILINE)
    return [_signature(parameters) for parameters in found]


def _signature(text: str) -> inspect.Signature:
    parameters = re.split(r", (?=\w+: |/)", text)[1:]
    return inspect.Signature([_parameter(each) for each in parameters if each != "/"])


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(": ")
    unnamed = re.fullmatch(r"arg\d+", name)  # What pybind11 calls them; nobody else can.
    kind = Parameter.POSITIONAL_ONLY if unnamed else Parameter.POSITIONAL_OR_KEYWORD
    return Parameter(name, kind, default=None if " = " in rest else Parameter.empty)


class Api:
    """Stands for the module: `makers` say what constructed objects do, all else is real."""

    def __init__(self, real: ModuleType, makers: dict[str, Callable[..., Members]]) -> None:
        self.real = real
        self._makers = makers

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.real, name)
        if name not in self._makers:
            assert hasattr(real, "__members__") or name in REAL, f"the test has no {name}"
            return real

        def construct(*args: Any, **kwargs: Any) -> Fake:
            check(name, real.__init__, args, kwargs)
            return Fake(real, self._makers[name](*args))

        return construct

    def fake(self, kind: str, **members: Any) -> "Fake":
        """An object of that class, with these attributes and methods."""
        return Fake(getattr(self.real, kind), members)


def check(title: str, documented: Any, args: Any, kwargs: Members) -> None:
    known = signatures(documented)
    if not any(_binds(each, args, kwargs) for each in known):
        ways = " or ".join(map(str, known))
        raise TypeError(f"TensorRT's {title} takes {ways}; it was given {args} {kwargs}")


def _binds(signature: inspect.Signature, args: Any, kwargs: Members) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


class Fake:
    """What a test wants of an object, behind the interface of a real class."""

    def __init__(self, real: type, members: Members) -> None:
        vars(self).update(real=real, members=members)

    def __getattr__(self, name: str) -> Any:
        title, member = self._member(name)
        done = vars(self)["members"][name]
        if isinstance(member, property):
            return done

        def call(*args: Any, **kwargs: Any) -> Any:
            check(title, getattr(vars(self)["real"], name), args, kwargs)
            return done(*args, **kwargs)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        title, member = self._member(name)
        assert isinstance(member, property), f"{title} cannot be set"
        vars(self)["members"][name] = value

    def _member(self, name: str) -> tuple[str, Any]:
        real = vars(self)["real"]
        title = f"{real.__name__}.{name}"
        assert hasattr(real, name), f"TensorRT has no {title}"
        return title, inspect.getattr_static(real, name)
