"""recipe.toml with other values for some keys; comments, order and everything else stay."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from build_scripts.errors import BuildError

HEADER = re.compile(r"(?m)^\s*\[")
VALUE = r"""(?m)^(\s*{key}\s*=\s*)("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[\w.+-]+)"""


def edited(text: str, values: Mapping[str, Any], where: str) -> str:
    """`text` with these values, tables as mappings.

    Raises:
        BuildError: it is written in a way that cannot be edited; the message has the lines.
    """
    wanted = _merged(tomllib.loads(text), values)
    text = f"{text.rstrip()}\n"
    first = HEADER.search(text)
    at = first.start() if first else len(text)
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    result = _with(text[:at], plain) + text[at:]
    for name, table in values.items():
        if isinstance(table, Mapping):
            result = _with_table(result, name, table)
    try:
        safe = tomllib.loads(result) == wanted
    except tomllib.TOMLDecodeError:
        safe = False
    if not safe:
        raise BuildError(f"{where} cannot be edited safely; write into it:\n{_lines(values)}")
    return result


def _merged(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        key: _merged(given.get(key, {}), value) if isinstance(value, Mapping) else value
        for key, value in values.items()
    }
    return {**given, **nested}


def _with(block: str, values: Mapping[str, Any]) -> str:
    """Lines without a table's header, with these values: in place, else at the end."""
    for key, value in values.items():
        pattern = VALUE.format(key=re.escape(key))
        if found := re.search(pattern, block):
            block = f"{block[: found.start(2)]}{_toml(value)}{block[found.end(2) :]}"
        else:
            rest = block[len(block.rstrip()) :] or "\n"
            block = f"{block.rstrip()}\n{key} = {_toml(value)}{rest}".lstrip("\n")
    return block


def _with_table(text: str, name: str, values: Mapping[str, Any]) -> str:
    header = re.search(rf"(?m)^\s*\[\s*{name}\s*\][^\n]*(?:\n|$)", text)
    if header is None:
        return f"{text.rstrip()}\n\n[{name}]\n{_lines(values)}\n"
    after = HEADER.search(text, header.end())
    end = after.start() if after else len(text)
    return text[: header.end()] + _with(text[header.end() : end], values) + text[end:]


def _lines(values: Mapping[str, Any]) -> str:
    plain = [f"{key} = {_toml(v)}" for key, v in values.items() if not isinstance(v, Mapping)]
    tables = [f"[{key}]\n{_lines(v)}" for key, v in values.items() if isinstance(v, Mapping)]
    return "\n".join([*plain, *tables])


def _toml(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
