"""Publishing: new versions beside the old ones, nothing beyond the bounds; what --check finds."""

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from build_scripts import build, check, command, publish
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.model import admission
from python_mp.model.manifest import Manifest
from tests.support.builds import Workshop, rank_files, verdict, workshop


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return workshop(tmp_path, monkeypatch)


def main(tiny: Workshop, *arguments: str) -> int:
    places = ["--repository", str(tiny.repository), "--workspace", str(tiny.workspace)]
    return build.main([*places, *arguments])


def test_a_version_has_its_files_and_a_manifest(tiny: Workshop) -> None:
    assert tiny.build().status == "published"
    names = {"manifest.json", "rank0.safetensors", "rank1.safetensors"}
    assert {path.name for path in (tiny.model / "1").iterdir()} == names
    found = Manifest.read(tiny.model / "1")
    assert found is not None
    admission.refusal(tiny.model / "1", found, tiny.job().config)
    assert found.files.keys() == names - {"manifest.json"}
    assert found.layout == {"tensor_parallel_size": 2, "pipeline_parallel_size": 1}
    assert found.inputs == [{"name": "X", "dtype": "float32", "dims": [4]}]
    assert (found.accuracy, found.latency) == ({"cosine_min": 0.95}, {"p50_ms": 1.5})
    assert {"python", "safetensors"} <= found.versions.keys()
    assert found.recipe["accuracy"]["cosine_min"] == 0.9


def test_bytecode_that_a_later_stage_left_is_not_published(tiny: Workshop) -> None:
    tiny.build(publishing=False)
    (output,) = tiny.workspace.glob("tiny/shards-*")
    (output / "__pycache__").mkdir()
    (output / "__pycache__" / "module.cpython-311.pyc").write_bytes(b"verify ran it")
    assert tiny.build().status == "published"
    assert tiny.shard.ran == 1
    assert not list((tiny.model / "1").rglob("*.pyc"))


def test_built_again_nothing_happens(tiny: Workshop) -> None:
    tiny.build()
    before = tiny.state()
    shutil.rmtree(tiny.workspace)  # A published version needs none.
    again = tiny.build()
    assert (again.status, again.seconds, tiny.shard.ran) == ("kept", 0, 1)
    assert again.accuracy == {"cosine_min": 0.95}
    assert tiny.state() == before
    shutil.rmtree(tiny.model / "1")
    assert tiny.build().status == "published"
    after = tiny.state()
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {"1/manifest.json"}


def test_a_version_for_another_machine_is_published_again(
    tiny: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.build()
    monkeypatch.setattr(publish, "machine_misfits", lambda found: ["built for another GPU"])
    assert tiny.build().status == "published"
    assert tiny.versions() == [1, 2]


def test_a_change_is_a_new_version_and_old_ones_go_but_not_those_made_by_hand(
    tiny: Workshop,
) -> None:
    (tiny.model / "1").mkdir()
    (tiny.model / "1" / "model.safetensors").write_text("mine")
    for number in range(4):
        tiny.shard.decides = {"number": number}
        tiny.build()
    assert tiny.versions() == [1, 4, 5]
    assert (tiny.model / "1" / "model.safetensors").read_text() == "mine"


@pytest.mark.parametrize("name", ["rank1.safetensors", "manifest.json"])
def test_a_damaged_version_is_followed_by_a_whole_one(tiny: Workshop, name: str) -> None:
    tiny.build()
    path = tiny.model / "1" / name
    path.write_bytes(b"}" + path.read_bytes()[1:])
    assert tiny.build().status == "published"
    assert tiny.versions() == [1, 2]
    assert tiny.shard.ran == 1


def test_a_damaged_output_is_not_published(tiny: Workshop) -> None:
    before = tiny.state()
    assert tiny.build(publishing=False).status == "verified"
    assert tiny.state() == before
    assert tiny.build(publishing=False).seconds == 0
    (output,) = tiny.workspace.glob("tiny/shards-*/rank0.safetensors")
    output.with_name("new").write_text("Weights of 0")
    output.with_name("new").replace(output)
    tiny.build()
    assert (tiny.model / "1" / "rank0.safetensors").read_text() == "weights of 0"
    assert tiny.shard.ran == 2


def test_beyond_the_bounds_nothing_is_published(tiny: Workshop) -> None:
    tiny.build()
    before = tiny.state()
    tiny.verify.files = lambda _job: verdict(passed=False)
    tiny.shard.decides = {"worse": 1}
    result = tiny.build()
    assert result.status == "failed"
    assert "is not accurate enough: cosine_min is 0.5, not >= 0.9" in result.error
    assert result.worst == [{"sample": 3, "cosine": 0.5}]
    assert tiny.state() == before
    assert tiny.build().status == "failed"  # without running anything again
    assert tiny.verify.ran == 2


def test_what_config_pbtxt_says_otherwise_is_not_built(tiny: Workshop) -> None:
    line = 'parameters { key: "engine" value { string_value: "torch" } }\n'
    tiny.edit("config.pbtxt", "max_batch_size", line + "max_batch_size")
    assert tiny.build().status == "published"
    tiny.edit("recipe.toml", "[shapes]", 'engine = "onnxruntime"\n[shapes]')
    with pytest.raises(BuildError, match="says engine torch, the recipe onnxruntime: take the par"):
        tiny.build()
    assert tiny.shard.ran == 1


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.mark.parametrize(
    ("target", "replacement", "said"),
    [
        ("shutil.copyfile", full, r"were written and more is needed, .* MB are free"),
        ("os.fsync", full, r"were written and more is needed"),
        ("shutil.disk_usage", lambda _path: Usage(9, 8, 1), r"0\.0 MB are needed, 0\.0 MB free"),
    ],
)
def test_a_full_disk_leaves_the_repository_as_it_was(
    tiny: Workshop, monkeypatch: pytest.MonkeyPatch, target: str, replacement: Any, said: str
) -> None:
    tiny.build()
    tiny.edit("recipe.toml", "[shapes]", 'engine = "onnxruntime"\n[shapes]')
    tiny.build(publishing=False)
    before = tiny.state()
    with monkeypatch.context() as patch:
        patch.setattr(target, replacement)
        with pytest.raises(BuildError, match=f"The disk of {tiny.model} is full: .*{said}"):
            tiny.build()
    assert tiny.state() == before
    assert not list(tiny.model.glob(".building-*"))
    assert tiny.build().status == "published"


# --check


ENGINE = 'parameters { key: "engine" value { string_value: "echo" } }\n'


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("1/rank1.safetensors", "weights", "Weights", "was changed since it was built; run `pyth"),
        ("1/manifest.json", 'features": []', 'features": ["amx"]', "processors with amx, which th"),
        ("recipe.toml", "keep", "engine = 'onnxruntime'\nkeep", "recipe.toml has another engine"),
        ("config.pbtxt", "parameters", ENGINE + "parameters", "says engine echo, the recipe torch"),
        ("module.py", "...", "pass", "config.pbtxt or the code that builds it have changed"),
    ],
)
def test_check_finds(
    tiny: Workshop, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, said: str
) -> None:
    tiny.build()
    assert main(tiny, "--check") == 0
    assert capsys.readouterr().out == "tiny: ok\n"
    tiny.edit(file, old, new)
    before = tiny.state()
    assert main(tiny, "--check", "tiny") == 1
    assert said in capsys.readouterr().out
    assert tiny.state() == before
    assert tiny.shard.ran == 1


def test_check_finds_what_is_not_there(tiny: Workshop) -> None:
    tiny.build()
    tiny.shard.TOOLS = ("rich",)
    (tiny.model / "1" / "rank0.safetensors").unlink()
    other, lost, file = check.misfits(tiny.job())
    assert "it was built by another version of rich" in other
    assert "a rank is missing: there is no" in lost
    assert "is missing; run" in file
    shutil.rmtree(tiny.model / "1")
    assert check.misfits(tiny.job()) == ["nothing is built yet"]


# The command


def test_a_model_that_fails_does_not_stop_the_others(tiny: Workshop, tmp_path: Path) -> None:
    for name in ("another", "broken"):
        shutil.copytree(tiny.model, tiny.repository / name)
    (tiny.repository / "broken" / "recipe.toml").write_text("family = 3\nsource = 'x'")
    config = (tiny.model / "config.pbtxt").read_text().replace('"tiny"', '"another"')
    (tiny.repository / "another" / "config.pbtxt").write_text(config)

    def fail(job: Job) -> dict[str, str]:
        if job.model == "another":
            raise ZeroDivisionError("of a library")
        return rank_files(job)

    tiny.shard.files = fail
    report = tmp_path / "report.json"
    assert main(tiny, "--report", str(report)) == 1
    another, broken, good = json.loads(report.read_text())
    assert "of a library" in another["error"]
    assert (broken["model"], broken["status"]) == ("broken", "failed")
    assert "family: Expected `str`, got `int`" in broken["error"]
    assert (good["model"], good["status"], good["layout"]) == ("tiny", "published", "tp2 pp1")
    assert good["accuracy"] == {"cosine_min": 0.95}


def test_variants_are_verified_and_not_published(tiny: Workshop, tmp_path: Path) -> None:
    with (tiny.model / "recipe.toml").open("a") as file:
        file.write('[[variants]]\nengine = "onnxruntime"\n')
    report = tmp_path / "report.json"
    assert main(tiny, "--variants", "--report", str(report)) == 0
    rows = [(row["engine"], row["status"]) for row in json.loads(report.read_text())]
    assert rows == [("torch", "published"), ("onnxruntime", "verified")]
    assert tiny.versions() == [1]


def test_what_the_command_says_instead_is_verified_only(
    tiny: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever comes next (`make serve` builds, too), it is as recipe.toml and config.pbtxt say."""
    assert main(tiny) == 0
    before = tiny.state()
    assert main(tiny, "tiny", "--engine", "onnxruntime", "--tensor-parallel-size", "1") == 0
    said = capsys.readouterr().err
    assert "Not published, as it is not what recipe.toml and config.pbtxt say" in said
    assert "engine = onnxruntime" in said
    assert "tensor_parallel_size = 1" in said
    assert tiny.verify.ran == 2
    assert main(tiny, "tiny", "--check") == 0
    assert main(tiny) == 0
    assert tiny.state() == before


def test_what_needs_a_gpu_can_be_left_out(tiny: Workshop, tmp_path: Path) -> None:
    tiny.edit("config.pbtxt", "kind: KIND_CPU }", "kind: KIND_GPU gpus: [ 0 ] }")
    tiny.edit("config.pbtxt", "kind: KIND_CPU passive", "kind: KIND_GPU gpus: [ 1 ] passive")
    report = tmp_path / "report.json"
    assert main(tiny, "--without-gpu", "--report", str(report)) == 0
    assert [row["status"] for row in json.loads(report.read_text())] == ["left out"]
    assert (tiny.versions(), tiny.shard.ran) == ([], 0)


def test_a_mistake_on_the_command_line_is_said(
    tiny: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, said in (
        ("other", "makes 'other'; there are tiny"),
        ("tiny --engine aot_inductor --dtype int8", "aot_inductor has no dtype int8"),
        ("tiny --source hub:", "hub:"),
        ("tiny --pipeline-parallel-size 0", "'pipeline_parallel_size' is '0'; it must be"),
    ):
        assert main(tiny, *line.split()) == 1
        assert said in capsys.readouterr().err
    assert tiny.versions() == []


def test_a_stage_has_a_command_of_its_own(
    tiny: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--repository", str(tiny.repository), "--workspace", str(tiny.workspace)]
    assert command.main("shards", ["tiny", *places]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "rank1.safetensors").exists()
    assert (tiny.shard.ran, tiny.verify.ran) == (1, 0)
    assert command.main("compile", ["tiny", *places]) == 1
    assert "has no stage compile; it has fetch, shards, verify" in capsys.readouterr().err
