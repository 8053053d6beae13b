"""What /ready and /status say of models in any condition."""

import itertools
import json
from typing import Any

import pytest

from server.pages import report
from server.pages.report import Facts
from server.watch.model_state import Model
from server.watch.state import State

SECRET = "/srv/models/big/3/module.py: the weights of customer 7"
KINDS = ("serves", "never served", "served", "down")
PAIRS = [*itertools.combinations_with_replacement(KINDS, 2)]


def model(name: str, kind: str) -> Model:
    known = Model(name, {"backend": "python_mp"}, reason="" if kind == "serves" else SECRET)
    known.has_served = kind != "never served"
    known.versions = [1] if kind in ("serves", "down") else []
    state = {"serves": "serving", "down": "down"}.get(kind)
    if state:
        said = {"model": name, "version": 1, "replica": 0, "pid": 1}
        known.replicas = [{**said, "state": state, "reason": known.reason}]
    return known


def pages(*kinds: str, state: str = "SERVING", **more: Any) -> dict[str, Any]:
    models = {f"m{n}": model(f"m{n}", kind) for n, kind in enumerate(kinds)}
    facts: dict[str, Any] = {
        "state": State[state],
        "models": models,
        "is_heard": True,
        "pid": 1,
        "errors": {},
        "is_draining": False,
        "trouble": "",
        "version": "2.51.0",
        "restarts": 0,
        "since": 0.0,
        "served": 0.0,
    }
    return report.of(Facts(**facts | more))


@pytest.mark.parametrize("kinds", PAIRS, ids=", ".join)
def test_ready_is_who_serves_and_lost_nothing(kinds: tuple[str, ...]) -> None:
    said = pages(*kinds)
    serves = "serves" in kinds and not {"served", "down"} & set(kinds)
    assert said["ready"]["ready"] == said["status"]["ready"] == serves
    assert bool(said["ready"]["reason"]) == bool(said["status"]["reason"]) == (not serves)
    for page in ("ready", "status"):
        assert [each["ready"] for each in said[page]["models"].values()] == [
            kind == "serves" for kind in kinds
        ], "each broken model is named, for its alert"


@pytest.mark.parametrize("kinds", PAIRS, ids=", ".join)
@pytest.mark.parametrize("state", ["SERVING", "STARTING", "WAITING"])
def test_reasons_are_told_to_who_has_the_token(kinds: tuple[str, ...], state: str) -> None:
    said = pages(*kinds, state=state, trouble=SECRET)
    assert "customer" not in json.dumps(said["ready"])
    if state != "SERVING" or {"served", "down"} & set(kinds):
        assert SECRET in said["status"]["reason"]
    for kind, each in zip(kinds, said["status"]["models"].values(), strict=True):
        assert (SECRET in each["reason"]) == (kind != "serves")


@pytest.mark.parametrize(
    ("kinds", "facts", "reason"),
    [
        ((), {}, "no model is loaded"),
        (("serves",), {"state": "STARTING"}, "it is starting"),
        (("serves",), {"state": "WAITING"}, "tritonserver ended"),
        (("serves",), {"is_draining": True}, "it is draining"),
        (("serves",), {"is_heard": False}, "tritonserver does not answer"),
        ((), {"models": None}, ""),
    ],
)
def test_what_else_it_needs(kinds: tuple[str, ...], facts: dict[str, Any], reason: str) -> None:
    said = pages(*kinds, **facts)["ready"]
    assert (said["ready"], said["reason"]) == (not reason, reason)
