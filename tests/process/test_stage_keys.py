"""A stage's key covers all that decides its output: what a real run opens is compared with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import cache
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from build_scripts import code, fetch, stages
from build_scripts import job as jobs
from build_scripts.job import PROJECT, REPOSITORY, Job
from tests.support.checkpoints import tiny_bert

RUNS_THE_STAGES = code.ROOTS["build_scripts"] / "stages.py"
"""It is on the stack, where warnings look for the line that they show."""
WATCH = """
import os, sys
log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def opened(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        os.write(log, os.path.abspath(os.fsencode(arguments[0])) + b"\\n")
sys.addaudithook(opened)
"""
RUN = """
import os, sys
from pathlib import Path
from rich.progress import Progress
from build_scripts import job, stages
repository, workspace, model = map(Path, sys.argv[1:])
made = job.load(str(model), repository, workspace=workspace)
(workspace / model).mkdir(parents=True)
steps = stages.plan(made)
log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND)
for name in steps:
    os.write(log, b"stage " + name.encode() + b"\\n")
    stages.ensure(made, steps, name, Progress(disable=True))
"""
SAMPLES = """
import json
from pathlib import Path
import numpy as np

def samples(folder):
    scale = json.loads((Path(__file__).parent / "scale.json").read_text())
    rows = np.random.default_rng(0).standard_normal((24, 1, 256)).astype(np.float32)
    return [{"FEATURES": row * np.float32(scale)} for row in rows], None
"""


def ranker(repository: Path) -> None:
    """All stages but `compile`, with samples that read another file."""
    model = repository / "m"
    model.mkdir(parents=True)
    for name in ("config.pbtxt", "module.py", "seeded.py"):
        shutil.copy(REPOSITORY / "ranker" / name, model)
    (model / "samples.py").write_text(SAMPLES)
    (model / "scale.json").write_text("1")
    text = (REPOSITORY / "ranker" / "recipe.toml").read_text()
    text = text.replace('"torch"', '"onnxruntime"').replace('"float32"', '"int8"')
    text = text.replace("[accuracy.float32]\nmax_error = 1e-4", "[accuracy]\nmax_error = 1e9")
    (model / "recipe.toml").write_text(f"{text}\n[calibration]\nsamples = 8\n")


def encoder(repository: Path) -> None:
    model = repository / "m"
    model.mkdir(parents=True)
    text = (REPOSITORY / "embed_encoder" / "config.pbtxt").read_text().replace("384", "8")
    (model / "config.pbtxt").write_text(text)
    source = tiny_bert(repository.parent / "checkpoint")
    (model / "recipe.toml").write_text(
        f'family = "encoder"\nsource = "{source}"\n'
        "[shapes]\ntokens = [1, 8, 64]\n[accuracy]\nsamples = 8\ncosine_min = 0.9\n"
    )


def tokenizer(repository: Path) -> None:
    model = repository / "m"
    model.mkdir(parents=True)
    for name in ("config.pbtxt", "model.py"):
        shutil.copy(REPOSITORY / "embed_tokenizer" / name, model)
    source = tiny_bert(repository.parent / "checkpoint")
    (model / "recipe.toml").write_text(f'family = "tokenizer"\nsource = "{source}"\n')


@pytest.fixture(params=[ranker, encoder, tokenizer], ids=lambda make: make.__name__)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Job, dict[str, set[Path]]]:
    """A job, and what each of its stages opened in all processes."""
    repository, opened = tmp_path / "repository", tmp_path / "opened"
    request.param(repository)
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OPENED": str(opened)}
    places = [str(repository), str(tmp_path / "workspace"), "m"]
    subprocess.run([sys.executable, "-c", RUN, *places], env=environment, check=True, cwd=PROJECT)
    found, stage = defaultdict[str, set[Path]](set), ""
    for line in opened.read_text().splitlines():
        if line.startswith("stage "):
            stage = line.removeprefix("stage ")
        elif stage:
            found[stage].add(_source(Path(line)))
    return jobs.load("m", repository, workspace=tmp_path / "workspace"), found


def _source(path: Path) -> Path:
    """Compiled code counts as its source, also under the name that Python first writes it under:
    x.cpython-311.pyc, x.cpython-311.opt-1.pyc, x.cpython-311.pyc.139669521475792."""
    if path.parent.name != "__pycache__":
        return path
    return path.parent.with_name(f"{path.name.partition('.')[0]}.py")


@pytest.mark.parametrize("optimised", [[], ["-OO"]], ids=["plain", "optimised"])
def test_compiled_code_counts_as_its_source(tmp_path: Path, optimised: list[str]) -> None:
    """Written by the first process, read by the second."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "mine.py").touch()
    opened = tmp_path / "opened"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OPENED": str(opened)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(2):
        command = [sys.executable, *optimised, "-c", "import mine"]
        subprocess.run(command, env=environment, check=True)
    paths = {Path(line) for line in opened.read_text().splitlines()}
    paths = {path for path in paths if path.name.startswith("mine.")}
    assert len(paths) == 3  # The source, the compiled code, and that under its temporary name.
    assert {_source(path) for path in paths} == {tmp_path / "mine.py"}


def keys(job: Job) -> dict[str, str]:
    return {name: step.key for name, step in stages.plan(job).items()}


@pytest.mark.timeout(240)
def test_whatever_a_stage_opens_is_part_of_its_key(
    built: tuple[Job, dict[str, set[Path]]],
) -> None:
    job, opened = built
    assert opened.keys() == keys(job).keys()
    ours = (*code.ROOTS.values(), job.folder, job.folder.parent.parent / "checkpoint")
    edited = 0
    for stage, paths in opened.items():
        covered = {code._file(name) for name in _covered(job, stage)}
        for path in sorted(paths - {RUNS_THE_STAGES}):
            if not path.is_file() or not any(path.is_relative_to(each) for each in ours):
                continue
            if any(path.is_relative_to(each) for each in code.ROOTS.values()):
                assert path in covered, f"{stage} opened {path}, which is in no key of its own"
            elif path.name not in ("config.pbtxt", "recipe.toml"):  # of them the meaning counts
                edited += 1
                assert _decides(path, job, stage), f"{stage} opened {path}"
    assert edited > 0


def _covered(job: Job, stage: str) -> set[str]:
    step = stages.plan(job)[stage]
    covered = set(code.hashes(f"build_scripts.{stage}"))
    if job.recipe.source.startswith("make:"):
        covered |= code.of_file(fetch.maker(job)).keys()
    return covered.union(*(_covered(job, need) for need in step.stage.NEEDS if need in job.outputs))


def _decides(path: Path, job: Job, stage: str) -> bool:
    before, kept = keys(job)[stage], path.read_bytes()
    path.write_bytes(kept + b" ")
    try:
        fresh = jobs.load(job.model, job.folder.parent, workspace=job.workspace)
        return keys(fresh)[stage] != before
    finally:
        path.write_bytes(kept)


def test_each_file_of_the_code_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every stage: what it imports, also by a process that it starts, changes its key."""
    for name, root in code.ROOTS.items():
        shutil.copytree(root, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    monkeypatch.setattr(code, "ROOTS", {name: tmp_path / name for name in code.ROOTS})
    for stage in stages.ORDER:
        before = code.hashes(f"build_scripts.{stage}")
        assert {"build_scripts.samples"} <= before.keys() or stage not in ("reference", "verify")
        for name in before:
            path = code._file(name)
            assert path is not None
            kept = path.read_bytes()
            path.write_bytes(kept + b"\n")
            assert code.hashes(f"build_scripts.{stage}") != before
            path.write_bytes(kept)
    assert {"python_mp.rank.forkserver", "python_mp.rank.engines.torch", "python_mp.rank._shm"} <= (
        code.hashes("build_scripts.verify").keys()
    )


def test_somebodys_own_package_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "theirs_for_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "make.py").write_text(
        "import numpy, json\nfrom . import data\nimport beside_for_test, spaced_for_test.part\n"
        "import importlib\nimportlib.import_module('called_for_test')\nimport compiled_for_test"
    )
    (package / "data.py").write_text("")
    (tmp_path / "beside_for_test.py").write_text("import safetensors.torch")
    (tmp_path / "spaced_for_test").mkdir()
    (tmp_path / "spaced_for_test" / "part.py").write_text("")
    (tmp_path / "called_for_test.py").write_text("")
    (tmp_path / f"compiled_for_test{EXTENSION_SUFFIXES[0]}").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = code.hashes("theirs_for_test.make")
    (tmp_path / "weights.py").write_text("import theirs_for_test.make")
    assert found.keys() == {
        "theirs_for_test", "theirs_for_test.make", "theirs_for_test.data", "beside_for_test",
        "spaced_for_test.part", "called_for_test", "compiled_for_test",
    }  # fmt: skip
    of_file = code.of_file(tmp_path / "weights.py")
    assert of_file.items() - found.items() == {
        *((f"library {tool}", version(tool)) for tool in ("numpy", "safetensors")),
        ("weights.py", of_file["weights.py"]),
    }


@pytest.mark.parametrize("name", ["module.py", "samples.py"])
def test_the_libraries_of_a_models_code_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Those of the project's own stages do not come with the code: they name theirs."""
    path = tmp_path / name
    path.write_text(
        "def later():\n    import PIL.Image\nfrom python_mp.rank import shard\nimport rich"
    )
    monkeypatch.setattr(code, "version", lambda tool: f"1 of {tool}")
    code.versions.cache_clear()
    found = code.of_file(path)
    assert {key: said for key, said in found.items() if key.startswith("library ")} == {
        "library pillow": "1 of pillow"
    }
    code.versions.cache_clear()


DISTRIBUTIONS = cache(packages_distributions)
PASSED_OVER = {"rich", "protobuf", "tritonclient", "huggingface_hub", "msgspec"}
"""They show progress, and read what is in the key by its meaning or by its commit."""
NOT_RUN = {
    "tokenizer": {"numpy", "safetensors", "torch"},
    "shards": {"numpy", "onnx", "onnxruntime", "tokenizers"},
    "export": {"numpy", "onnxruntime", "tokenizers", "transformers"},
    "quantise": {"safetensors", "transformers"},
    "compile": {"numpy", "onnx", "onnxruntime", "safetensors", "tokenizers", "transformers"},
    "verify": {"onnx"},
}
"""Of the libraries that a stage imports: those of engines and stages that it only mentions."""


@pytest.mark.parametrize("name", [*stages.ORDER, "tokenizer"])
def test_the_libraries_that_a_stage_uses_are_in_its_key(name: str) -> None:
    distributions = DISTRIBUTIONS()
    imported = {
        imported.partition(".")[0]
        for module in code.hashes(f"build_scripts.{name}")
        if (path := code._file(module))
        for imported in code._imports(path, module, "", path.stat().st_mtime_ns)
    } - {*sys.stdlib_module_names, *code.ROOTS}
    used = {distributions[each][0] for each in imported if each in distributions}
    said = set(import_module(f"build_scripts.{name}").TOOLS)
    assert used - PASSED_OVER - NOT_RUN.get(name, set()) <= said
