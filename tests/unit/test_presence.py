"""How a leader learns of the other instances."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from python_mp.front.place.presence import Presence, runtime_folder
from python_mp.model.errors import LoadError
from python_mp.model.layout import CPU, Instance
from tests.support.configs import echo_config

LEAD, SHARD = Instance("lead_0", CPU), Instance("shard_0", CPU)
MINE = tuple(sorted(os.sched_getaffinity(0)))


@pytest.fixture
def model(tmp_path: Path) -> Presence:
    return Presence(tmp_path, echo_config(Path("m"), start_timeout_seconds=60))


def test_cores_are_gathered_in_the_order_asked(model: Presence, tmp_path: Path) -> None:
    other = Presence(tmp_path, echo_config(Path("other")))
    other.announce(Instance("lead_0", 3))
    for instance in (LEAD, SHARD, Instance("shard_0", 1)):  # one name, two devices
        model.announce(instance)
    assert model.gather([SHARD, LEAD, Instance("shard_0", 1)]) == [MINE] * 3


def test_it_waits_for_an_instance_that_still_loads(model: Presence) -> None:
    model.announce(LEAD)
    late = threading.Timer(0.1, model.announce, [SHARD])
    late.start()
    assert model.gather([LEAD, SHARD]) == [MINE, MINE]
    late.join()


def test_withdraw_leaves_nothing_but_other_loads(model: Presence, tmp_path: Path) -> None:
    model.withdraw(LEAD)  # never came: no error
    model.announce(LEAD)
    (path,) = tmp_path.iterdir()
    newer = path.with_name(path.name.replace(str(os.getpid()), str(os.getppid())))
    newer.write_text(json.dumps({"at": time.monotonic(), "cpus": [77]}))
    (tmp_path / "m.1.lead_0.-1.x.draft").touch()  # is still being written
    assert model.gather([LEAD]) == [(77,)], "the newer one's"
    model.withdraw(LEAD)
    assert [path for path in tmp_path.iterdir() if path.suffix == newer.suffix] == [newer]


def test_instances_loaded_one_by_one(model: Presence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_PARALLEL_INSTANCE_LOADING", "0")
    model.announce(LEAD)
    assert model.gather([LEAD]) == [MINE]
    with pytest.raises(LoadError, match="TRITON_PARALLEL_INSTANCE_LOADING"):
        model.gather([LEAD, SHARD])


def test_the_runtime_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_MP_RUNTIME_DIR", str(tmp_path / "run"))
    assert runtime_folder() == runtime_folder() == tmp_path / "run"
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    (tmp_path / "run").chmod(0o750)
    with pytest.raises(LoadError, match="must be ours alone"):
        runtime_folder()
    # Whoever may write to /tmp could plant a link to another private folder of ours.
    (tmp_path / "run").rename(tmp_path / "private")
    (tmp_path / "private").chmod(0o700)
    (tmp_path / "run").symlink_to(tmp_path / "private")
    with pytest.raises(LoadError, match="run is a link"):
        runtime_folder()


def test_one_that_does_not_come_is_named(model: Presence, tmp_path: Path) -> None:
    """Also where a dead process left that it was there."""
    model.announce(LEAD)
    model = Presence(tmp_path, echo_config(Path("m"), start_timeout_seconds=1))
    with pytest.raises(LoadError, match="instance shard_0 did not load"):
        model.gather([LEAD, SHARD])
    (path,) = tmp_path.iterdir()
    path.rename(path.with_name(path.name.replace(str(os.getpid()), str(1 << 30))))
    with pytest.raises(LoadError, match="lead_0 did not load within 1 s"):
        model.gather([LEAD])
