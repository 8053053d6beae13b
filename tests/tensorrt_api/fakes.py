"""Objects that stand for TensorRT's, and allow only what the real classes have.

A test writes what an object does as a `Behaviour` named as the real class. The code under test gets
it wrapped: each attribute must exist there, each call must fit a documented signature in number,
names and types of its arguments, each result must be of the documented type.
"""

import inspect
import mmap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tests.tensorrt_api.signatures import Overload, overloads, resolve

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


class Behaviour:
    """What a fake does; has the attributes and methods of its namesake that the test needs."""


class HostMemory(bytes):
    """Stands for `IHostMemory`, of which nothing but its bytes is wanted."""


class Api:
    """Stands for the module: constructors of `behaviours`, everything else is the real thing."""

    def __init__(self, trt: ModuleType, *behaviours: type[Behaviour]) -> None:
        self.real = trt
        self._behaviours = {each.__name__: each for each in behaviours}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.real, name)
        if name in self._behaviours:
            return lambda *args, **kwargs: self._construct(real, args, kwargs)
        assert hasattr(real, "__members__") or name in REAL, f"the test has no {name}"
        return real

    def fits(self, value: Any, annotation: str) -> bool:
        """Whether pybind11 would take `value` where this type is wanted."""
        if annotation == "None":
            return value is None
        if annotation == "CapsuleType":
            return type(value).__name__ == "PyCapsule"
        if annotation in BASIC:
            return isinstance(value, BASIC[annotation])
        if annotation == "Dims" and isinstance(value, (tuple, list)):
            return all(isinstance(each, int) for each in value)
        for container in ("Sequence", "list"):
            if annotation.startswith(f"{container}["):
                inner = annotation.removeprefix(f"{container}[").removesuffix("]")
                return isinstance(value, Sequence) and all(self.fits(v, inner) for v in value)
        real = resolve(self.real, annotation)
        assert real is not None, f"nothing is known about the type {annotation}"
        if annotation == "IHostMemory":
            return isinstance(value, HostMemory)
        kind = vars(value)["real"] if isinstance(value, Fake) else type(value)
        return issubclass(kind, real)

    def wrapped(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self.wrapped(each) for each in result]
        if not isinstance(result, Behaviour):
            return result
        return Fake(self, getattr(self.real, type(result).__name__), result)

    def _construct(self, real: type, args: Any, kwargs: dict[str, Any]) -> Any:
        _chosen(self, real.__name__, overloads(real.__init__), args, kwargs)
        made = self._behaviours[real.__name__](*map(_unwrapped, args))
        return self.wrapped(made)


class Fake:
    """A behaviour behind the interface of a real class."""

    def __init__(self, api: Api, real: type, behaviour: Behaviour) -> None:
        vars(self).update(api=api, real=real, behaviour=behaviour)

    def __getattr__(self, name: str) -> Any:
        api, real = vars(self)["api"], vars(self)["real"]
        member = _member(real, name)
        done = getattr(vars(self)["behaviour"], name)
        if isinstance(member, property):
            return _checked(api, f"{real.__name__}.{name}", overloads(member.fget)[0], done)

        def call(*args: Any, **kwargs: Any) -> Any:
            title = f"{real.__name__}.{name}"
            overload = _chosen(api, title, overloads(getattr(real, name)), args, kwargs)
            return _checked(api, title, overload, done(*map(_unwrapped, args), **kwargs))

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        api, real = vars(self)["api"], vars(self)["real"]
        member = _member(real, name)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(f"{real.__name__}.{name} cannot be set")
        _chosen(api, f"{real.__name__}.{name} =", overloads(member.fset), (value,), {})
        setattr(vars(self)["behaviour"], name, _unwrapped(value))


def check_overrides(base: type, derived: type) -> None:
    """Whether `derived` implements exactly the methods of the interface `base`, as it has them."""
    wanted = {n for n in vars(base) if callable(getattr(base, n)) and not n.startswith("_")}
    written = {n for n in vars(derived) if callable(getattr(derived, n)) and not n.startswith("_")}
    assert written == wanted, f"{base.__name__} has {sorted(wanted)}, not {sorted(written)}"
    for name in wanted:
        theirs = overloads(getattr(base, name))[0].signature.parameters
        ours = list(inspect.signature(getattr(derived, name)).parameters)[1:]
        assert len(ours) == len(theirs), f"{name} takes {list(theirs)}, not {ours}"


def _member(real: type, name: str) -> Any:
    try:
        return inspect.getattr_static(real, name)
    except AttributeError:
        raise AttributeError(f"TensorRT's {real.__name__} has no {name}") from None


def _chosen(
    api: Api, title: str, known: list[Overload], args: Any, kwargs: dict[str, Any]
) -> Overload:
    for overload in known:
        if overload.binds(api.fits, args, kwargs):
            return overload
    ways = " or ".join(str(each.signature) for each in known)
    raise TypeError(f"TensorRT's {title} takes {ways}; it was given {args} {kwargs}")


def _checked(api: Api, title: str, overload: Overload, result: Any) -> Any:
    """The result, wrapped. TensorRT gives None for an object that it could not make."""
    result = api.wrapped(result)
    made = resolve(api.real, overload.returns)
    fits = (result is None and made) or api.fits(result, overload.returns)
    assert fits, f"{title} returns {overload.returns}, and the test's {result!r}"
    return result


def _unwrapped(value: Any) -> Any:
    return vars(value)["behaviour"] if isinstance(value, Fake) else value
