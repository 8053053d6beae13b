"""Signatures of pybind11 functions, read from their docstrings: they have no others."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from types import ModuleType
from typing import Any

NAMESPACES = re.compile(
    r"\b(?:(?:tensorrt_bindings\.tensorrt|typing_extensions|typing|collections\.abc)\.|nv\w+::)"
)
ALIASES = {"IParserError": "ParserError"}
OPENING, CLOSING = "([<{", ")]>}"
Fits = Callable[[Any, str], bool]


@dataclass(frozen=True)
class Overload:
    """One way to call a function; annotations are as the docstring has them."""

    signature: inspect.Signature
    returns: str

    def binds(self, fits: Fits, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether it can be called so, `fits(value, annotation)` telling of each argument."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:
            return False
        parameters = self.signature.parameters
        return all(
            (value is None and parameters[name].default == "None")
            or fits(value, parameters[name].annotation)
            for name, value in bound.arguments.items()
        )


def overloads(documented: Any) -> list[Overload]:
    """Of a function, or of a property's getter or setter; without `self`."""
    text = NAMESPACES.sub("", documented.__doc__ or "")
    found = re.findall(r"^(?:\d+\. )?\w*\((.*)\) -> (.+)$", text, re.MULTILINE)
    return [Overload(_signature(parameters), returns.strip()) for parameters, returns in found]


def _signature(text: str) -> inspect.Signature:
    return inspect.Signature([_parameter(each) for each in _split(text)[1:] if each != "/"])


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(": ")
    annotation, _, default = rest.partition(" = ")
    unnamed = re.fullmatch(r"arg\d+", name)  # What pybind11 calls them; nobody else can.
    return Parameter(
        name,
        Parameter.POSITIONAL_ONLY if unnamed else Parameter.POSITIONAL_OR_KEYWORD,
        default=default or Parameter.empty,
        annotation=annotation,
    )


def _split(text: str) -> list[str]:
    """At the commas that are in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in OPENING) - (character in CLOSING)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def resolve(trt: ModuleType, annotation: str) -> Any:
    """The class that an annotation names; None if it names none of TensorRT's."""
    found: Any = trt
    for name in ALIASES.get(annotation, annotation).split("."):
        found = getattr(found, name, None)
    return found if inspect.isclass(found) else None
