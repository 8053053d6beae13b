"""TOML tables into frozen dataclasses: what is unknown, misspelt or wrong is named."""

import difflib
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from build_scripts.errors import BuildError

T = TypeVar("T")
WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def read(kind: type[T], given: object, where: str, key: str = "") -> T:
    """The table `given` as an instance of the dataclass `kind`.

    Args:
        where: what to name in an error, such as the file.
        key: the table's own name in that file, none for the file itself.

    Raises:
        BuildError: a key is unknown or missing, a value is of another type, or the dataclass
            itself refuses the values by a ValueError.
    """
    if not isinstance(given, dict):
        raise BuildError(f"{where}: {key} is {given!r}; it must be a table")
    prefix = f"{key}." if key else ""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise BuildError(f"{where}: unknown key '{prefix}{name}'{_hint(name, list(known))}")
    for name, field in known.items():
        if name not in given and field.default is MISSING:
            raise BuildError(f"{where}: {prefix}{name} is missing")
    types = get_type_hints(kind, include_extras=True)
    values = {
        name: _value(types[name], value, where, prefix + name) for name, value in given.items()
    }
    try:
        return kind(**values)
    except ValueError as error:
        raise BuildError(f"{where}: {prefix}{error}") from None


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def _value(kind: Any, given: object, where: str, key: str) -> object:
    if is_dataclass(kind):
        return read(kind, given, where, key)  # type: ignore[arg-type]
    if get_origin(kind) in (UnionType, Union):  # X | None
        return _value(get_args(kind)[0], given, where, key)
    if get_origin(kind) is tuple:
        return _items(kind, given, where, key)
    allowed = _refusal(kind, given)
    if allowed:
        hint = _spelling(kind, given)
        raise BuildError(f"{where}: {key} is {given!r}; it must be {allowed}{hint}")
    return given


def _items(kind: Any, given: object, where: str, key: str) -> tuple[object, ...]:
    first, *rest = get_args(kind)
    count = None if rest == [...] else 1 + len(rest)
    if not isinstance(given, list) or len(given) != (count or len(given)):
        wanted = f"a list of {count} values" if count else "a list"
        raise BuildError(f"{where}: {key} is {given!r}; it must be {wanted}")
    return tuple(_value(first, each, where, f"{key}[{at}]") for at, each in enumerate(given))


def _refusal(kind: Any, given: object) -> str:
    """What `given` should have been; empty where it is all right."""
    if get_origin(kind) is Literal:
        return "" if given in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is Annotated:
        plain, low, high = get_args(kind)
        fits = not _refusal(plain, given) and low <= given <= high
        return "" if fits else f"{WORDS[plain]} from {low} to {high}"
    accepted = (int, float) if kind is float else kind
    wrong = not isinstance(given, accepted) or (isinstance(given, bool) and kind is not bool)
    return WORDS[kind] if wrong else ""


def _spelling(kind: Any, given: object) -> str:
    if get_origin(kind) is not Literal or not isinstance(given, str):
        return ""
    close = difflib.get_close_matches(given, get_args(kind), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
