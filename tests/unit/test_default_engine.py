"""The engine of a recipe that names none: the fastest that can, found out once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest

from build_scripts import default_engine, publish
from build_scripts.build import main as build
from build_scripts.default_engine import ON_CPU, ON_GPU, order
from build_scripts.errors import BuildError, Refused, refusing
from build_scripts.job import PROJECT, Job, load
from build_scripts.recipe import Dtype
from python_mp.model import config as config_module
from python_mp.model.parameters import ENGINES
from tests.support.builds import FakeStage, Workshop, judge, put_stages, rank_files, workshop
from tests.support.configs import FP32, model_config, tensor

X = tensor("X", FP32, 4)
WHY = "The module cannot be exported (it prints); make it traceable, or serve it with engine torch."


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize(("on_gpu", "generates"), [(False, False), (True, False), (False, True)])
def test_what_is_taken_is_the_first_that_has_the_dtype_and_runs_there(
    dtype: Dtype, on_gpu: bool, generates: bool
) -> None:
    engines = order(on_gpu=on_gpu, generates=generates)
    having = [engine for engine in engines if dtype in ENGINES[engine]]
    if not having:
        with pytest.raises(BuildError, match=f"have no dtype {dtype}; there is float32"):
            default_engine.choose(engines, dtype)
        return
    first, *rest = having
    config = model_config(Path("m"), [X], [X], passive=0, engine=first, dtype=dtype)
    raw = json.loads(config.source[0])
    place = {"kind": "KIND_GPU", "gpus": [0]} if on_gpu else {"kind": "KIND_CPU"}
    raw["instance_group"] = [{**raw["instance_group"][0], **place}]
    config_module.parse(json.dumps(raw), "m", "1")
    assert default_engine.choose(engines, dtype) == first
    found = default_engine.next_after(Refused(WHY), first, engines, dtype)
    assert (found is None) == (not rest)
    if rest:
        assert default_engine.choose(engines, dtype, found) == rest[0]


class Export(FakeStage):
    """Refuses while `why` is something."""

    why = WHY

    def applies(self, job: Job) -> bool:
        return job.engine != "torch"

    def run(self, job: Job, out: Path, progress: object) -> None:
        super().run(job, out, progress)  # type: ignore[arg-type]
        if self.why:
            raise Refused(self.why)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    made = workshop(tmp_path, monkeypatch)
    made.edit("recipe.toml", 'engine = "torch"\n', "")
    return made


@pytest.fixture
def export(tiny: Workshop, monkeypatch: pytest.MonkeyPatch) -> Export:
    made = Export(files=rank_files)
    put_stages(monkeypatch, shards=tiny.shard, export=made, verify=judge())
    return made


def published(tiny: Workshop) -> dict[str, object]:
    path = tiny.model / str(tiny.versions()[-1]) / "manifest.json"
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_what_the_fastest_cannot_compute_the_next_one_does(
    tiny: Workshop, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--repository", str(tiny.repository), "--workspace", str(tiny.workspace)]
    assert build(["tiny", *places]) == 0
    assert f"tiny has engine torch, not onnxruntime: {WHY}" in capsys.readouterr().err
    found = published(tiny)
    assert found["engine"] == "torch"
    assert found["options"]["instead"]["why"] == WHY  # type: ignore[index]
    for _ in range(2):
        assert tiny.build().status == "kept"
        assert build(["tiny", "--check", *places]) == 0
        shutil.rmtree(tiny.workspace)  # As where the version was built elsewhere.
        tiny.workspace.mkdir()
    assert export.ran == 1, "it is known already"


def test_it_is_tried_again_when_what_decides_it_has_changed(tiny: Workshop, export: Export) -> None:
    tiny.build()
    export.why = ""
    assert tiny.build().status == "kept"
    tiny.edit("module.py", "...", "pass")
    result = tiny.build()
    assert (result.status, result.engine, export.ran) == ("published", "onnxruntime", 2)
    assert "instead" not in published(tiny)["options"]  # type: ignore[operator]


def test_an_engine_that_is_named_is_not_replaced(tiny: Workshop, export: Export) -> None:
    for _ in range(2):
        with pytest.raises(BuildError, match="cannot be exported"):
            tiny.build(engine="onnxruntime")
    assert (export.ran, publish.versions(tiny.model)) == (1, [])


def test_a_lack_of_memory_says_nothing_of_the_model() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(BuildError) as raised, refusing("It cannot: {why}."):
            raise error
        assert type(raised.value) is BuildError
    with pytest.raises(Refused, match="It cannot: KeyError."), refusing("It cannot: {why}."):
        raise KeyError


def test_pages_say_which_it_is() -> None:
    said = f"`{ON_CPU[0]}` on CPUs, `{ON_GPU[0]}` on GPUs"
    for page in ("engines", "recipe"):
        assert said in (PROJECT / "docs" / f"{page}.md").read_text()
    shipped = load("embed_encoder")
    assert (shipped.recipe.engine, shipped.engine) == (None, ON_CPU[0])
