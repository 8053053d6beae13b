"""What the watcher makes of stubs, status files and the repository, without a server."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from server import caretaker, repository, stubs, token
from server.control import Control, Version
from server.endpoints import Endpoints
from server.errors import ControlError, ModelError, ServerError
from server.installation import STUB
from server.model import CONFIRMED, Model, Said, Trouble
from server.settings import Settings
from server.stubs import Stub

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


def test_while_it_loads_nothing_is_missing() -> None:
    known = Model("m", config=CONFIG)
    for answer in range(5):
        seen(known, ALL[1:], answer, loading=True)
    assert not known.is_hurt
    assert not seen(known, ALL[1:], 5).is_hurt


def test_ready_with_a_replica_that_lives() -> None:
    known = Model("m", config=CONFIG)
    for answer in range(4):
        seen(known, ALL[1:], answer)
    assert known.is_hurt
    assert known.why_not({}) is None, "the other one serves"
    for answer in range(4, 8):
        seen(known, ALL[2:], answer)
    assert known.why_not({}) == Trouble("its stub died", "its stub died")


def test_a_passive_stub_is_no_harm() -> None:
    known = Model("m", config=CONFIG)
    for answer in range(4):
        seen(known, ALL[:3], answer)
    assert known.lost == {(1, "shard"): True}
    assert not known.is_hurt
    assert known.why_not({}) is None


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        (["serving"], ""),
        (["restarting"], "it is restarting"),
        (["down", "serving"], ""),
        (["down", "starting"], "it is down"),
    ],
)
def test_replicas_say_whether_they_serve(states: list[str], reason: str) -> None:
    known = Model("m", config=CONFIG)
    said = [{"model": "m", "version": 1, "state": state, "reason": "because"} for state in states]
    old = {"model": "m", "version": 0, "state": "serving", "reason": ""}
    other = {"model": "n", "version": 1, "state": "serving", "reason": ""}
    known.see([Version("m", 1, "READY")], ALL, [*said, old, other], 1, loading=False)
    assert known.why_not({}) == (Trouble(reason, "because") if reason else None)


def test_an_ensemble_is_as_ready_as_its_steps() -> None:
    whole = Model("whole", {"ensemble_scheduling": {"step": [{"model_name": "m"}]}}, [1])
    step = Model("m", config=CONFIG)
    trouble = whole.why_not({"m": step})
    assert trouble is not None
    assert trouble.public == "it needs m, which is not ready"
    assert whole.why_not({"m": seen(step, ALL, 1)}) is None


def test_status_files_count_while_their_stub_lives(tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    for pid in (1, 2):
        said = {
            "model": "m",
            "version": 1,
            "replica": 2 - pid,
            "pid": pid,
            "state": "serving",
            "reason": "",
        }
        (tmp_path / "status" / f"m.1.{pid}.json").write_text(json.dumps(said))
    known = Said()
    assert known.read(tmp_path)
    assert [each["pid"] for each in known.of({1, 2})] == [2, 1]
    assert [each["pid"] for each in known.of({1})] == [1]


def test_status_files_are_read_when_they_change(tmp_path: Path) -> None:
    """However quickly: two writes may bear the same time."""
    known, folder = Said(), tmp_path / "status"
    assert known.read(tmp_path)
    assert not known.read(tmp_path), "there is no folder yet"
    folder.mkdir()
    for number in range(200):
        said = {"model": "m", "version": 1, "replica": 0, "pid": 1, "state": str(number)}
        (folder / "draft").write_text(json.dumps(said | {"reason": ""}))
        (folder / "draft").rename(folder / "m.json")
        assert known.read(tmp_path)
        assert [each["state"] for each in known.of({1})] == [str(number)]
    time.sleep(0.2)
    known.read(tmp_path)
    assert not known.read(tmp_path)


def test_of_two_loads_of_a_replica_the_later_one_counts(tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    for pid, since in ((1, 20.0), (2, 10.0)):
        said = {"model": "m", "version": 1, "replica": 0, "pid": pid, "since": since}
        said |= {"state": "serving", "reason": ""}
        (tmp_path / "status" / f"m.1.0.{pid}.json").write_text(json.dumps(said))
    known = Said()
    known.read(tmp_path)
    assert [each["pid"] for each in known.of({1, 2})] == [1]
    assert [each["pid"] for each in known.of({2})] == [2]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with the model `m` of two versions, one of them published."""
    for number in ("1", "2"):
        (tmp_path / "m" / number).mkdir(parents=True)
        (tmp_path / "m" / number / "model.py").write_text("x = 1")
    (tmp_path / "m" / "config.pbtxt").touch()
    (tmp_path / "m" / "2" / "manifest.json").write_text("{}")
    return tmp_path


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


def test_a_change_that_goes_on_is_waited_for(models: Path) -> None:
    changes = repository.Changes(models)
    for size in range(1, 4):
        (models / "m" / "config.pbtxt").write_text("#" * size)
        assert polled(changes) == []
    assert polled(changes) == [("m", True)]


def test_models_that_are_busy_wait(models: Path) -> None:
    changes = repository.Changes(models)
    (models / "m" / "3").mkdir()
    assert [list(changes.poll({"m"})) for _ in range(3)] == [[], [], []]
    assert polled(changes) == [("m", True)]


def test_a_model_that_is_gone(models: Path) -> None:
    changes = repository.Changes(models)
    (models / "m").rename(models / ".m")
    assert [polled(changes) for _ in range(3)] == [[], [("m", False)], []]


def test_harmless(models: Path) -> None:
    (models / "m" / "1" / "again").symlink_to("model.py")
    (models / "m" / "1" / "absolute").symlink_to(models / "m" / "2")
    assert repository.harmful(models) == {}


def test_a_socket_is_harmful(models: Path) -> None:
    os.mkfifo(models / "m" / "1" / "pipe")
    assert repository.harmful(models) == {"m": "m/1/pipe is neither a file nor a folder"}


@pytest.mark.parametrize("name", ["my model", "m$x", "m;x"])
def test_a_model_whose_name_a_shell_reads(models: Path, name: str) -> None:
    (models / "m").rename(models / name)
    (reason,) = repository.harmful(models).values()
    assert reason.endswith("rename it")


def test_a_model_that_is_a_link_elsewhere(models: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "config.pbtxt").touch()
    (models / "linked").symlink_to(elsewhere)
    assert repository.harmful(models) == {
        "linked": "linked is a link that leads out of the repository; put a copy there"
    }


def test_the_token(tmp_path: Path) -> None:
    assert token.choose(None, {"ADMIN_TOKEN": "given-by-me"}) == "given-by-me"
    (tmp_path / "token").write_text("in-the-file\n")
    assert token.choose(tmp_path / "token", {"ADMIN_TOKEN": "given-by-me"}) == "in-the-file"
    made = [token.choose(None, {}) for _ in range(2)]
    assert made[0] != made[1]
    assert len(made[0]) >= 32


@pytest.mark.parametrize("given", ["", "short", "with space in it", "a:b=c,d,e,f"])
def test_a_token_that_triton_could_not_take(given: str) -> None:
    with pytest.raises(ServerError, match="ADMIN_TOKEN must hold 8 to 256 of the characters"):
        token.choose(None, {"ADMIN_TOKEN": given})


def test_the_token_is_not_shown() -> None:
    assert "secret-secret" not in repr(Settings(Path(), token="secret-secret"))


def test_control_is_ours_unless_given_away() -> None:
    arguments = Settings(Path("m"), token="secret-secret").arguments("run_")
    assert {"--model-control-mode=explicit", "--load-model=*"} <= set(arguments)
    assert sum("triton-admin=secret-secret" in argument for argument in arguments) == 2
    theirs = Settings(Path("m"), options=["--model-control-mode=poll"])
    assert not any("explicit" in argument for argument in theirs.arguments("run_"))
    assert theirs.own_control == "--model-control-mode was given"
    restricted = Settings(Path("m"), options=["--http-restricted-api=trace:k=v"])
    assert sum("triton-admin" in argument for argument in restricted.arguments("run_")) == 1
    assert restricted.own_control == "--http-restricted-api was given"


def test_a_change_that_could_not_be_followed_comes_again(models: Path) -> None:
    changes = repository.Changes(models)
    (models / "m" / "3").mkdir()
    assert polled(changes) == []
    assert next(changes.poll(set())) == ("m", True)  # Whoever asked had no thread for it.
    assert [polled(changes) for _ in range(2)] == [[("m", True)], []]


@pytest.mark.parametrize("is_gone", [False, True])
def test_what_did_not_reach_tritonserver_comes_again(models: Path, is_gone: bool) -> None:
    changes = repository.Changes(models)
    (models / "m").rename(models / ".m") if is_gone else (models / "m" / "3").mkdir()
    assert [polled(changes) for _ in range(3)] == [[], [("m", not is_gone)], []]
    changes.again("m")
    assert [polled(changes) for _ in range(2)] == [[("m", not is_gone)], []]


def test_an_order_that_nobody_hears_is_told_from_a_model_that_does_not_load() -> None:
    with pytest.raises(ControlError) as caught:
        Control(Endpoints.free(), "", grpc=True).load("m")
    assert caretaker.is_unheard(caught.value)
    assert caretaker.is_unheard(RuntimeError("can't start new thread"))
    assert not caretaker.is_unheard(ControlError("the weights are missing", 500))
    assert not caretaker.is_unheard(ModelError("a link leads out of the repository"))
    assert not caretaker.is_unheard(None)


@pytest.mark.parametrize(
    "number", [errno.ENOMEM, errno.EMFILE, errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES]
)
def test_a_short_machine_is_no_fault_of_the_model(
    models: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fails)
    if number == errno.EACCES:
        assert repository.objection(models, "m").endswith("cannot be read: Permission denied")
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            repository.objection(models, "m")


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
