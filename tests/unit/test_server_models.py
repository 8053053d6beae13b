"""What the watcher makes of stubs, status files and the repository, without a server."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from server import token
from server.control import Version
from server.errors import ServerError
from server.process.installation import STUB
from server.settings import Settings
from server.watch import repository, stubs
from server.watch.model_state import CONFIRMED, Model, Trouble
from server.watch.said import Said
from server.watch.stubs import Stub

CONFIG: dict[str, Any] = {
    "backend": "python",
    "instance_group": [
        {"name": "lead", "count": 2, "gpus": [], "passive": False},
        {"name": "shard", "count": 2, "gpus": [], "passive": True},
    ],
}


def stub(instance: str, *, version: int = 1, pid: int = 1, name: str = "m") -> Stub:
    return Stub(pid, name, version, instance, "segment")


ALL = [stub(instance) for instance in ("lead_0", "lead_1", "shard_0", "shard_1")]


def seen(known: Model, living: list[Stub], answer: int, state: str = "READY", **more: Any) -> Model:
    known.see([Version("m", 1, state)], living, [], answer, loading=more.get("loading", False))
    return known


def test_a_stubs_command_line() -> None:
    command = ["/b/" + STUB, "/r/embed/3/model.py", "run_1f", "1", "1", "9", "/b", "336", "lead_0"]
    assert stubs.parse(7, command) == Stub(7, "embed", 3, "lead_0", "run_1f")
    assert stubs.parse(7, command[:6]) is None
    assert stubs.parse(7, ["/usr/bin/python", *command[1:]]) is None
    assert stubs.parse(7, []) is None, "a zombie"


def test_groups_with_a_stub_too_few() -> None:
    assert stubs.missing(ALL, 1, CONFIG) == {}
    assert stubs.missing(ALL[1:], 1, CONFIG) == {"lead": False}
    assert stubs.missing(ALL[:3], 1, CONFIG) == {"shard": True}
    assert stubs.missing(ALL, 2, CONFIG) == {"lead": False, "shard": True}
    two_gpus = {"name": "lead", "count": 1, "gpus": [0, 1]}
    assert stubs.missing(ALL[:1], 1, {**CONFIG, "instance_group": [two_gpus]}) == {"lead": False}
    assert stubs.missing([], 1, {**CONFIG, "backend": "onnxruntime"}) == {}
    assert stubs.missing([], 1, {**CONFIG, "backend": "x", "runtime": "model.py"}) != {}


def test_a_death_is_believed_when_triton_answered_twice_since() -> None:
    """In between it may have switched to another version, whose stubs these are not."""
    known = Model("m", config=CONFIG)
    assert not seen(known, ALL[1:], 5).is_hurt
    assert not seen(known, ALL[1:], 5 + CONFIRMED - 1).is_hurt
    assert seen(known, ALL[1:], 5 + CONFIRMED).is_hurt
    assert not seen(known, ALL, 8).is_hurt


def test_ready_with_a_replica_that_lives() -> None:
    known = Model("m", config=CONFIG)
    for answer in range(4):
        seen(known, ALL[1:], answer, loading=True)
    assert not known.is_hurt, "while it loads nothing is missing"
    for answer in range(4, 8):
        seen(known, ALL[1:], answer)
    assert known.is_hurt
    assert known.why_not({}) is None, "the other one serves"
    for answer in range(8, 12):
        seen(known, ALL[2:], answer)
    assert known.why_not({}) == Trouble("its stub died", "its stub died")
    known = Model("m", config=CONFIG)
    for answer in range(4):
        seen(known, ALL[:3], answer)
    assert known.lost == {(1, "shard"): True}
    assert not known.is_hurt, "a passive stub is no harm"
    assert known.why_not({}) is None


def test_replicas_say_whether_they_serve() -> None:
    def why_not(*states: str) -> Trouble | None:
        known = Model("m", config=CONFIG)
        said = [{"model": "m", "version": 1, "state": state, "reason": "why"} for state in states]
        others = [
            {**said[0], "state": "serving"} | other for other in ({"version": 0}, {"model": "n"})
        ]
        known.see([Version("m", 1, "READY")], ALL, [*said, *others], 1, loading=False)
        return known.why_not({})

    assert why_not("serving") is None
    assert why_not("down", "serving") is None
    assert why_not("restarting", "down") == Trouble("it is restarting", "why")


def test_an_ensemble_is_as_ready_as_its_steps() -> None:
    whole = Model("whole", {"ensemble_scheduling": {"step": [{"model_name": "m"}]}}, [1])
    step = Model("m", config=CONFIG)
    trouble = whole.why_not({"m": step})
    assert trouble is not None
    assert trouble.public == "it needs m, which is not ready"
    assert whole.why_not({"m": seen(step, ALL, 1)}) is None


def test_status_files_count_while_their_stub_lives(tmp_path: Path) -> None:
    """And of two loads of a replica the later one."""
    (tmp_path / "status").mkdir()
    for pid, replica, since in ((1, 1, 5.0), (2, 0, 20.0), (3, 0, 10.0)):
        said = {"model": "m", "version": 1, "replica": replica, "pid": pid, "since": since}
        said |= {"state": "serving", "reason": ""}
        (tmp_path / "status" / f"m.1.{pid}.json").write_text(json.dumps(said))
    known = Said()
    assert known.read(tmp_path)
    assert [each["pid"] for each in known.of({1, 2, 3})] == [2, 1]
    assert [each["pid"] for each in known.of({1, 3})] == [3, 1]
    assert [each["pid"] for each in known.of({1})] == [1]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with the model `m` of two versions, one of them published."""
    models = tmp_path / "models"
    for number in ("1", "2"):
        (models / "m" / number).mkdir(parents=True)
        (models / "m" / number / "model.py").write_text("x = 1")
    (models / "m" / "config.pbtxt").touch()
    (models / "m" / "2" / "manifest.json").write_text("{}")
    return models


def polled(changes: repository.Changes) -> list[tuple[str, bool]]:
    return list(changes.poll(set()))


def test_nothing_changed(models: Path) -> None:
    changes = repository.Changes(models)
    (models / "m" / "1" / "__pycache__").mkdir()
    (models / "m" / "1" / "__pycache__" / "model.pyc").touch()
    (models / "m" / ".building-x" / "2").mkdir(parents=True)
    (models / ".draft").mkdir()
    (models / "no_model").mkdir()
    assert [polled(changes) for _ in range(3)] == [[], [], []]


def touch(path: Path) -> None:
    os.utime(path, ns=(time.time_ns(), time.time_ns()))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.pbtxt").write_text("# other"),
        lambda folder: touch(folder / "1" / "model.py"),
        lambda folder: (folder / "1" / "new").touch(),
        lambda folder: (folder / "3").mkdir(),
        lambda folder: touch(folder / "2" / "manifest.json"),
    ],
)
def test_a_change_counts_once_it_has_settled(models: Path, change: Any) -> None:
    changes = repository.Changes(models)
    change(models / "m")
    assert [polled(changes) for _ in range(3)] == [[], [("m", True)], []]


def test_the_token(tmp_path: Path) -> None:
    assert token.choose(None, {"ADMIN_TOKEN": "given-by-me"}) == "given-by-me"
    (tmp_path / "token").write_text("in-the-file\n")
    assert token.choose(tmp_path / "token", {"ADMIN_TOKEN": "given-by-me"}) == "in-the-file"
    for bad in ("short", "with space in it", "a:b=c,d,e,f"):
        with pytest.raises(ServerError, match="ADMIN_TOKEN must hold 8 to 256 of the characters"):
            token.choose(None, {"ADMIN_TOKEN": bad})
    assert "secret-secret" not in repr(Settings(Path(), token="secret-secret"))
    made = [token.choose(None, {}) for _ in range(2)]
    assert made[0] != made[1]
    assert len(made[0]) >= 32


def test_what_did_not_reach_tritonserver_comes_again(models: Path) -> None:
    changes = repository.Changes(models)
    (models / "m").rename(models / ".m")
    assert [polled(changes) for _ in range(3)] == [[], [("m", False)], []]
    changes.again("m")
    assert next(changes.poll(set())) == ("m", False)  # Whoever asked had no thread for it.
    assert [polled(changes) for _ in range(2)] == [[("m", False)], []]


def test_a_short_machine_says_nothing_of_a_model(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([errno.ENOMEM, errno.EACCES])

    def fails(*_: object) -> int:
        raise OSError(number := next(errors), os.strerror(number))

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(OSError, match="memory"):
        repository.objection(models, "m")
    assert repository.objection(models, "m").endswith("cannot be read: Permission denied")


@pytest.mark.timeout(20)
def test_a_fifo_is_not_read(models: Path) -> None:
    """Whoever opens one waits for ever; the watcher looks at every config, for ensembles."""
    for path in (models / "stuck" / "config.pbtxt", models / "m" / "3" / "manifest.json"):
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
    (models / "e").mkdir()
    step = 'step {{ model_name: "{}" model_version: -1 {} {{ key: "X" value: "x" }} }}'
    steps = step.format("m", "output_map") + step.format("n", "input_map")
    (models / "e" / "config.pbtxt").write_text(f"ensemble_scheduling {{ {steps} }}")
    assert {"m", "e", "stuck"} <= repository.states(models).keys()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda m: (m / "1" / "again").symlink_to("model.py"), []),
        (lambda m: (m / "1" / "absolute").symlink_to(m / "2"), []),
        (lambda m: os.mkfifo(m / "1" / "pipe"), ["m/1/pipe is neither a file nor a folder"]),
        (lambda m: m.rename(m.with_name("m$x")), ["rename it"]),
        (
            lambda m: m.symlink_to(m.rename(m.parents[1] / "elsewhere")),
            ["m is a link that leads out of the repository; put a copy there"],
        ),
    ],
)
def test_what_would_harm_the_server(models: Path, damage: Any, said: list[str]) -> None:
    damage(models / "m")
    found = repository.harmful(models)
    assert len(found) == len(said)
    assert all(each.endswith(text) for each, text in zip(found.values(), said, strict=True))


def test_a_change_waits_for_what_goes_on(models: Path) -> None:
    """For one that is not over, and for a model that is busy."""
    changes = repository.Changes(models)
    for size in range(1, 4):
        (models / "m" / "config.pbtxt").write_text("#" * size)
        assert polled(changes) == []
    assert list(changes.poll({"m"})) == []
    assert polled(changes) == [("m", True)]


def test_control_is_ours_unless_given_away() -> None:
    arguments = Settings(Path("m"), token="secret-secret").arguments("run_")
    assert {"--model-control-mode=explicit", "--load-model=*"} <= set(arguments)
    assert sum("triton-admin=secret-secret" in argument for argument in arguments) == 2
    for option, theirs in (
        ("--model-control-mode", "poll"),
        ("--http-restricted-api", "trace:k=v"),
    ):
        settings = Settings(Path("m"), options=[f"{option}={theirs}"])
        assert settings.own_control == f"{option} was given"
        assert sum(option in argument for argument in settings.arguments("run_")) == 1
