"""The text of a config.pbtxt, changed in place: a parameter, an entry of instance_group.

The message it stands for is parsed by protobuf; here only places in the text are found.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup as Group

from build_scripts.errors import BuildError


def with_parameter(text: str, key: str, value: str, where: str) -> str:
    """`text` with the parameter's value replaced, or with a line for it at the end."""
    pattern = rf'key\s*:?\s*"{key}"\s*[,;]?\s*value\s*:?\s*{{\s*string_value\s*:\s*"([^"]*)"'
    found = list(re.finditer(pattern, _without_comments(text)))
    if len(found) > 1:
        raise BuildError(f"{where} has the parameter '{key}' {len(found)} times; leave one")
    if not found:
        line = f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        return text + ("" if text.endswith("\n") else "\n") + line
    start, stop = found[0].span(1)
    return text[:start] + value + text[stop:]


@dataclass(frozen=True)
class Entry:
    """One `{ ... }` of instance_group: where it stands in the text, and what it says."""

    start: int
    stop: int
    group: Any
    in_list: bool
    """Whether it stands in [ ], or is an instance_group of its own."""

    @property
    def instances(self) -> int:
        """How many instances Triton makes of it."""
        return int(max(1, self.group.count) * max(1, len(self.group.gpus)))


def entries(text: str) -> Iterator[Entry]:
    """All entries of instance_group, in either spelling."""
    plain = _without_strings(_without_comments(text))
    for found in re.finditer(r"\binstance_group\s*:?\s*([\[{])", plain):
        in_list = found[1] == "["
        at, end = found.start(1), _closing(plain, found.start(1))
        if not in_list:
            yield _entry(text, at, end, in_list)
            continue
        while (at := plain.find("{", at, end)) >= 0:
            stop = _closing(plain, at)
            yield _entry(text, at, stop, in_list)
            at = stop


def _entry(text: str, start: int, stop: int, in_list: bool) -> Entry:
    group = text_format.Parse(text[start + 1 : stop - 1], Group())
    return Entry(start, stop, group, in_list)


def _closing(plain: str, start: int) -> int:
    """Where the bracket opened at `start` has been closed."""
    depth = 0
    for at in range(start, len(plain)):
        depth += (plain[at] in "[{") - (plain[at] in "]}")
        if not depth:
            return at + 1
    raise AssertionError("the text was parsed, so its brackets match")


_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|#[^\n]*')


def _without_comments(text: str) -> str:
    """The text with blanks for comments: every character keeps its place."""
    return _TOKEN.sub(lambda found: _blank(found[0]) if found[0][0] == "#" else found[0], text)


def _without_strings(text: str) -> str:
    return _TOKEN.sub(lambda found: _blank(found[0]), text)


def _blank(text: str) -> str:
    return " " * len(text)


def counted(text: str, entry: Entry, count: int) -> str:
    """`text` with this number of instances of the entry."""
    body = text[entry.start : entry.stop]
    found = re.search(r"\bcount\s*:\s*(\d+)", _without_comments(body))
    if found:
        body = body[: found.start(1)] + str(count) + body[found.end(1) :]
    else:
        opened = body.index("{") + 1
        body = f"{body[:opened]} count: {count}{body[opened:]}"
    return text[: entry.start] + body + text[entry.stop :]


def removed(text: str, entry: Entry) -> str:
    """`text` without the entry; a comment before it is kept."""
    before, after = text[: entry.start], text[entry.stop :]
    if not entry.in_list:
        return re.sub(r"instance_group\s*:?\s*$", "", before).rstrip(" ") + after.lstrip("\n")
    plain = _without_comments(before).rstrip()
    if plain.endswith("["):
        return before + re.sub(r"^\s*,\s*", "", after)
    comma = len(plain) - 1
    comment = before[comma + 1 :].rstrip(" \t") if before[comma + 1 :].strip() else ""
    return before[:comma] + comment + after


def added(text: str, after: Entry, count: int, passive: bool) -> str:
    """`text` with a new entry after this one, of the same kind, in the same style."""
    kind = Group.Kind.Name(after.group.kind)
    group = group_text(count, "" if kind == "KIND_AUTO" else kind, passive)
    if not after.in_list:
        return f"{text[: after.stop]}\ninstance_group {group}{text[after.stop :]}"
    indent = re.search(r"\n[ \t]*$", text[: after.start])
    gap = indent[0] if indent else " "
    return f"{text[: after.stop]},{gap}{group}{text[after.stop :]}"


def group_text(count: int, kind: str, passive: bool) -> str:
    """An entry as it is written; `kind` may be empty."""
    name, flag = ("shard", " passive: true") if passive else ("lead", "")
    return f'{{ name: "{name}" count: {count} kind: {kind or "KIND_CPU"}{flag} }}'
