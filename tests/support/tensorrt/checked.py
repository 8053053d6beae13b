"""Objects that stand for TensorRT's, and allow only what the real classes have.

Each attribute must exist there, each call must fit a documented signature in number, names and
types of its arguments. pybind11's functions have their signatures in docstrings only.
"""

import inspect
import mmap
import re
from collections.abc import Callable, Sequence
from inspect import Parameter
from types import ModuleType
from typing import Any

NAMESPACES = re.compile(
    r"\b(?:(?:tensorrt_bindings\.tensorrt|typing_extensions|typing|collections\.abc)\.|nv\w+::)"
)
BASIC = {
    "object": object,
    "str": str,
    "bool": bool,
    "int": int,
    "SupportsInt": int,
    "tuple": tuple,
    "list": list,
    "Buffer": (bytes, bytearray, memoryview, mmap.mmap),
}
REAL = ("Logger", "IProgressMonitor", "IErrorRecorder", "__version__", "__spec__")
"""What the bindings can do without a library; enums, too."""
Members = dict[str, Any]


def signatures(documented: Any) -> list[inspect.Signature]:
    """Of a function's overloads, or of a property's setter; without `self`."""
    text = NAMESPACES.sub("", documented.__doc__ or "")
    return [_signature(each) for each in re.findall(r"^(?:\d+\. )?\w*\((.*)\) ->", text, re.M)]


def _signature(text: str) -> inspect.Signature:
    parameters = re.split(r", (?=\w+: |/)", text)[1:]
    return inspect.Signature([_parameter(each) for each in parameters if each != "/"])


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(": ")
    annotation, _, default = rest.partition(" = ")
    unnamed = re.fullmatch(r"arg\d+", name)  # What pybind11 calls them; nobody else can.
    kind = Parameter.POSITIONAL_ONLY if unnamed else Parameter.POSITIONAL_OR_KEYWORD
    return Parameter(name, kind, default=default or Parameter.empty, annotation=annotation)


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
            self.check(name, real.__init__, args, kwargs)
            return Fake(self, real, self._makers[name](*args))

        return construct

    def fake(self, kind: str, **members: Any) -> "Fake":
        """An object of that class, with these attributes and methods."""
        return Fake(self, getattr(self.real, kind), members)

    def check(self, title: str, documented: Any, args: Any, kwargs: Members) -> None:
        known = signatures(documented)
        if not any(self._binds(each, args, kwargs) for each in known):
            ways = " or ".join(map(str, known))
            raise TypeError(f"TensorRT's {title} takes {ways}; it was given {args} {kwargs}")

    def _binds(self, signature: inspect.Signature, args: Any, kwargs: Members) -> bool:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return all(
            (value is None and signature.parameters[name].default == "None")
            or self._fits(value, signature.parameters[name].annotation)
            for name, value in bound.arguments.items()
        )

    def _fits(self, value: Any, annotation: str) -> bool:
        """Whether pybind11 would take `value` where this type is wanted."""
        if annotation == "CapsuleType":
            return type(value).__name__ == "PyCapsule"
        if annotation in BASIC:
            return isinstance(value, BASIC[annotation])
        if annotation == "Dims" and isinstance(value, tuple | list):
            return all(isinstance(each, int) for each in value)
        if inner := re.fullmatch(r"(?:Sequence|list)\[(.*)\]", annotation):
            return isinstance(value, Sequence) and all(self._fits(v, inner[1]) for v in value)
        real: Any = self.real
        for name in annotation.split("."):
            real = getattr(real, name)
        return issubclass(vars(value)["real"] if isinstance(value, Fake) else type(value), real)


class Fake:
    """What a test wants of an object, behind the interface of a real class."""

    def __init__(self, api: Api, real: type, members: Members) -> None:
        vars(self).update(api=api, real=real, members=members)

    def __getattr__(self, name: str) -> Any:
        api, title, member = self._member(name)
        done = vars(self)["members"][name]
        if isinstance(member, property):
            return done

        def call(*args: Any, **kwargs: Any) -> Any:
            documented = getattr(vars(self)["real"], name)
            api.check(title, documented, args, kwargs)
            return done(*args, **kwargs)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        api, title, member = self._member(name)
        assert isinstance(member, property), f"{title} cannot be set"
        api.check(title, member.fset, (value,), {})
        vars(self)["members"][name] = value

    def _member(self, name: str) -> tuple[Api, str, Any]:
        real = vars(self)["real"]
        title = f"{real.__name__}.{name}"
        assert hasattr(real, name), f"TensorRT has no {title}"
        return vars(self)["api"], title, inspect.getattr_static(real, name)


def check_overrides(base: type, derived: type) -> None:
    """Whether `derived` implements exactly the methods of the interface `base`, as it has them."""
    wanted, written = (
        {name for name in vars(each) if callable(getattr(each, name)) and name[0] != "_"}
        for each in (base, derived)
    )
    assert written == wanted
    for name in wanted:
        theirs = signatures(getattr(base, name))[0].parameters
        ours = list(inspect.signature(getattr(derived, name)).parameters)[1:]
        assert len(ours) == len(theirs), f"{name} takes {list(theirs)}, not {ours}"
