"""Stages: run when what decides their outcome changed, and only then."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.progress import Progress

from build_scripts import stages
from build_scripts.errors import BuildError
from build_scripts.job import Job
from tests.support.builds import FakeStage, Workshop, put_stages, workshop


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return workshop(tmp_path, monkeypatch)


def ensure(job: Job, stage: str) -> float:
    return stages.ensure(job, stages.plan(job), stage, Progress(disable=True))


def output(job: Job, stage: str) -> Path:
    return stages.plan(job)[stage].folder


def test_a_stage_runs_once_after_those_it_needs(tiny: Workshop) -> None:
    assert ensure(tiny.job(), "verify") > 0
    assert ensure(tiny.job(), "verify") == 0
    assert (tiny.shard.ran, tiny.verify.ran) == (1, 1)
    record = json.loads((output(tiny.job(), "shards") / "stage.json").read_text())
    assert record["seconds"] >= 0
    assert record["files"]["rank0.safetensors"]["size"] == len("weights of 0")
    assert made(tiny) == ["fetch", "shards", "verify"]


def made(tiny: Workshop) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in (tiny.workspace / "tiny").iterdir())


def test_a_damaged_output_is_made_again(tiny: Workshop) -> None:
    damages: tuple[Callable[[Path], object], ...] = (
        lambda folder: (folder / "rank0.safetensors").write_text("short"),
        lambda folder: (folder / "rank0.safetensors").unlink(),
        lambda folder: (folder / "more").write_text("not of this stage"),
        lambda folder: (folder / "stage.json").write_text("{"),
    )
    ensure(tiny.job(), "shards")
    for damage in damages:
        damage(output(tiny.job(), "shards"))
        assert ensure(tiny.job(), "shards") > 0
        assert stages.plan(tiny.job())["shards"].is_done(content=True)


def keys(tiny: Workshop, **overrides: object) -> dict[str, str]:
    return {name: step.key for name, step in stages.plan(tiny.job(**overrides)).items()}


def changed(tiny: Workshop, before: dict[str, str], **overrides: object) -> set[str]:
    return {name for name, key in keys(tiny, **overrides).items() if key != before[name]}


def test_a_change_reaches_the_stages_that_depend_on_it(tiny: Workshop) -> None:
    before = keys(tiny)
    assert changed(tiny, before) == set()
    tiny.verify.decides = {"bound": 1}
    assert changed(tiny, before) == {"verify"}
    tiny.verify.decides = {}
    assert changed(tiny, before, engine="onnxruntime") == {"shards", "verify"}
    for file, old, new in (
        ("config.pbtxt", "dims: [ 4 ] }", "dims: [ 3 ] }"),
        ("module.py", "...", "pass"),
    ):
        tiny.edit(file, old, new)
        assert changed(tiny, before) == {"shards", "verify"}
        tiny.edit(file, new, old)
    weights = tiny.repository.parent / "checkpoint" / "model.safetensors"
    weights.with_name("more.safetensors").write_bytes(weights.read_bytes())
    weights.unlink()
    assert changed(tiny, before) == {"fetch", "shards", "verify"}


def test_the_machine_decides_what_is_built_but_not_what_it_is(tiny: Workshop) -> None:
    """So that a repository can be checked on another machine than the one that built it."""
    before, same = keys(tiny), identities(tiny)
    tiny.shard.machine = lambda _job: {"gpu": "another"}  # type: ignore[attr-defined]
    assert changed(tiny, before) == {"shards", "verify"}
    assert identities(tiny) == same
    tiny.shard.decides = {"new": 1}
    assert identities(tiny) != same


def identities(tiny: Workshop) -> list[str]:
    return [step.identity for step in stages.plan(tiny.job()).values()]


def test_a_stage_that_does_not_apply_is_passed_over(tiny: Workshop) -> None:
    tiny.shard.applicable = False
    ensure(tiny.job(), "verify")
    assert made(tiny) == ["fetch", "verify"]


def test_a_stage_that_fails_leaves_nothing(tiny: Workshop) -> None:
    def fail(_job: Job) -> dict[str, str]:
        raise BuildError("no compiler")

    tiny.verify.files = fail
    with pytest.raises(BuildError, match="no compiler"):
        ensure(tiny.job(), "verify")
    assert made(tiny) == ["fetch", "shards"]


def test_a_full_disk_is_named_with_its_figures(tiny: Workshop) -> None:
    def fill(_job: Job) -> dict[str, str]:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    tiny.shard.files = fill
    said = rf"The disk of {tiny.workspace}/tiny is full: 0\.0 MB were written .* MB are free"
    with pytest.raises(BuildError, match=said):
        ensure(tiny.job(), "shards")


def test_old_outputs_go_and_the_newest_stay(
    tiny: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "KEPT_OUTPUTS", 2)
    outputs = []
    for number in range(4):
        tiny.shard.decides = {"number": number}
        ensure(tiny.job(), "shards")
        outputs.append(output(tiny.job(), "shards"))
    (tiny.workspace / "tiny" / ".building-x").mkdir()
    (tiny.workspace / "tiny" / "shard-0").mkdir()  # as 0.1 called the stage
    tiny.shard.decides = {"number": 1}
    assert ensure(tiny.job(), "shards") == 0  # which makes it the newest
    stages.clean(tiny.job())
    assert [folder.exists() for folder in outputs] == [False, True, False, True]
    assert set(made(tiny)) == {"fetch", "shards"}


def test_facts_are_not_part_of_what_is_published(
    tiny: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"facts.json": '{"options": {"level": 3}}', "model.plan": "plan"}
    put_stages(monkeypatch, shards=FakeStage(files=lambda _job: facts))
    ensure(tiny.job(), "shards")
    step = stages.plan(tiny.job())["shards"]
    assert step.facts() == {"options": {"level": 3}}
    assert step.output().keys() == {"model.plan"}
