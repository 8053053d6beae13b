"""Models of a repository that stand on several hosts, and who starts the agents there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from python_mp.model import pbtxt
from server.watch import repository


class Spanning(NamedTuple):
    hosts: str
    """As it is written: what it is worth is for the model's load to say."""
    placement: str


def models(folder: Path) -> list[Spanning]:
    """Those with `hosts`; what cannot be read has none."""
    found = (_read(folder / model / repository.CONFIG) for model in repository.models(folder))
    return [each for each in found if each.hosts != "1" and each.placement != "none"]


def placed_by_ray(folder: Path) -> int:
    """Other hosts that they need; all are served by the same ones."""
    asked = [each.hosts for each in models(folder) if each.placement == "ray"]
    return max((int(hosts) - 1 for hosts in asked if hosts.isdecimal()), default=0)


def _read(config: Path) -> Spanning:
    try:
        parameters = pbtxt.parse(config.read_text()).get("parameters", [])
    except (OSError, ValueError):
        parameters = []
    said = {
        each["key"][0]: each["value"][0]["string_value"][0]
        for each in parameters
        if isinstance(each, dict) and each.get("key") and each.get("value")
    }
    return Spanning(said.get("hosts", "1"), said.get("placement", "list"))
