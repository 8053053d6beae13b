"""Models whose recipes were not built yet: who waits, and what is loaded in which order then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    changes = Changes(repository)
    assert unbuilt.models(repository) == changes.unbuilt == WAIT
    write(repository / "talk_a" / "3" / "manifest.json")
    assert (polls(changes, set()), changes.unbuilt) == ([], WAIT)
    write(repository / "talk_b" / "1" / "manifest.json")
    assert unbuilt.models(repository) == {}
    assert polls(changes, set()) == ["talk_a", "mixed", "talk_b"]
    assert polls(changes, {"talk_b"}) == ["around"]
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


def test_a_start_without_any_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m" / "config.pbtxt")
    write(tmp_path / "m" / "recipe.toml")
    with pytest.raises(ServerError, match="are not built yet; run 'make build'"):
        TritonServer(tmp_path, show=lambda _: None)._admit()


def test_the_report_names_it() -> None:
    model = Model("m", recipe="talk")
    assert model.why_not({}) == Trouble("it is not built yet", "it is not built yet: talk")
    model.reason = "a broken file"
    assert model.why_not({}) == Trouble("it did not load", "a broken file")


@given(st.sets(st.integers(0, 5), min_size=1), st.sets(st.integers(0, 5)))
@settings(deadline=None, max_examples=30)
def test_a_recipe_is_whole_or_waits(made: set[int], there: set[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        steps = [f"s{number}" for number in sorted(made)]
        write(Path(folder, "r", "recipe.toml"), "".join(f"[steps.{each}]\n" for each in steps))
        for number in there:
            write(Path(folder, f"s{number}", "1", "model.py"))
        found = unbuilt.models(Path(folder))
    assert found == ({} if made <= there else dict.fromkeys(steps, "r"))
