"""Models whose recipes were not built yet: who waits, and what is loaded in which order then."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.control import Version
from server.errors import ServerError
from server.process.launch import TritonServer
from server.watch import unbuilt
from server.watch.model_state import Model, Trouble
from server.watch.repository import Changes

STEP = 'step {{ model_name: "{}" model_version: -1 {} {{ key: "X" value: "{}" }} }}'


def ensemble(repository: Path, name: str, first: str, last: str) -> None:
    steps = STEP.format(first, "output_map", "x") + STEP.format(last, "input_map", "x")
    write(repository / name / "config.pbtxt", f"ensemble_scheduling {{ {steps} }}")
    (repository / name / "1").mkdir()


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`talk` with its recipe for two steps, an ensemble of another's step and one of these, one
    around that, a model without a recipe, and a recipe that nobody can read."""
    ensemble(tmp_path, "talk", "talk_a", "talk_b")
    ensemble(tmp_path, "mixed", "alone", "talk_a")
    ensemble(tmp_path, "around", "mixed", "alone")
    write(tmp_path / "talk" / "recipe.toml", "[steps.talk_a]\n[steps.talk_b]\n")
    write(tmp_path / "broken" / "recipe.toml", "steps = [")
    os.mkfifo(tmp_path / "alone.fifo")
    (tmp_path / "stuck").mkdir()
    (tmp_path / "alone.fifo").rename(tmp_path / "stuck" / "recipe.toml")
    for name in ("talk_a", "talk_b", "alone"):
        write(tmp_path / name / "config.pbtxt")
    for name in ("alone", "broken"):
        write(tmp_path / name / "1" / "model.py")
    return tmp_path


WAIT = dict.fromkeys(("talk", "talk_a", "talk_b", "mixed", "around"), "talk")


def polls(changes: Changes, busy: set[str], count: int = 2) -> list[str]:
    return [name for _ in range(count) for name, _ in changes.poll(busy)]


def test_all_wait_until_the_last_of_them_is_built(repository: Path) -> None:
    """Unless another ensemble has all that it needs."""
    changes = Changes(repository)
    assert unbuilt.models(repository) == changes.unbuilt == WAIT
    write(repository / "talk_b" / "3" / "manifest.json")
    assert (polls(changes, set()), changes.unbuilt) == ([], WAIT)
    (repository / "talk_b" / "3" / "manifest.json").unlink()
    (repository / "talk_b" / "3").rmdir()
    write(repository / "talk_a" / "3" / "manifest.json")
    assert polls(changes, set()) == ["talk_a"]
    assert polls(changes, {"talk_a"}) == []
    assert polls(changes, set()) == ["mixed", "around"]
    assert changes.unbuilt == dict.fromkeys(("talk", "talk_b"), "talk")
    write(repository / "talk_b" / "1" / "manifest.json")
    assert unbuilt.models(repository) == {}
    assert polls(changes, {"talk_a"}) == ["talk_b"]
    assert polls(changes, set()) == ["talk"]
    assert polls(changes, set()) == []


def test_what_was_loaded_once_is_a_change_like_any_other(repository: Path) -> None:
    for name in ("talk_a", "talk_b"):
        write(repository / name / "1" / "manifest.json")
    changes = Changes(repository)
    (repository / "talk_b" / "1" / "manifest.json").unlink()
    (repository / "talk_b" / "1").rmdir()
    assert (polls(changes, set()), changes.unbuilt) == (["talk_b"], {})


def test_a_start_leaves_them_out_and_says_so(repository: Path) -> None:
    (repository / "stuck" / "recipe.toml").unlink()
    said: list[str] = []
    server = TritonServer(repository, show=said.append)
    assert server._admit() == ["alone", "broken"]
    (line,) = said
    assert "talk is not built yet" in line
    assert "python -m build_scripts.build talk" in line
    for name in ("talk_a", "talk_b"):
        write(repository / name / "1" / "manifest.json")
    assert server._admit() == ["*"]
    write(repository / "talk" / "recipe.toml", "[steps.talk_a]\n[steps.talk_b]\n[steps.talk_c]\n")
    assert {*server._admit()} == {*WAIT, "alone", "broken"}, "it has gained a step"


def test_a_start_without_any_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m" / "config.pbtxt")
    write(tmp_path / "m" / "recipe.toml")
    with pytest.raises(ServerError, match="are not built yet; run 'make build'"):
        TritonServer(tmp_path, show=lambda _: None)._admit()


def test_the_report_names_it() -> None:
    model = Model("m", recipe="talk")
    assert model.why_not({}) == Trouble("it is not built yet", "it is not built yet: talk")
    assert model.is_unbuilt
    model.see([Version("m", 1, "READY")], [], [], 1, loading=False)
    model.see([], [], [], 2, loading=False)
    assert model.why_not({}) == Trouble("it is not loaded", "it is not loaded"), "it was there"
    model = Model("m", recipe="talk", reason="a broken file")
    assert not model.is_unbuilt
    assert model.why_not({}) == Trouble("it did not load", "a broken file")


SETS = st.sets(st.sampled_from("abcdef"), min_size=1)


@given(made=SETS, built=st.sets(st.sampled_from("abcdef")), chains=st.lists(SETS, max_size=4))
@settings(deadline=None, max_examples=60)
def test_who_waits(made: set[str], built: set[str], chains: list[set[str]]) -> None:
    """No ensemble that has its steps, and nothing that one of these needs, or that is for none."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        write(repository / "r" / "recipe.toml", "".join(f"[steps.{each}]\n" for each in made))
        for name in built:
            write(repository / name / "1" / "model.py")
        for number, steps in enumerate(chains):
            text = " ".join(STEP.format(each, "input_map", "x") for each in steps)
            write(repository / f"e{number}" / "config.pbtxt", f"ensemble_scheduling {{ {text} }}")
        found = unbuilt.models(repository)
    lost = made - built
    whole = [steps for steps in chains if not steps & lost]
    needed, needless = set().union(*whole), made - set().union(*chains)
    expected = {f"e{number}" for number, steps in enumerate(chains) if steps & lost} | lost
    if lost:
        expected |= made - needed - needless
    assert found == dict.fromkeys(expected, "r")
