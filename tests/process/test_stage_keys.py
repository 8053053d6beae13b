"""A stage's key covers all that decides its output: what a real run opens, and what it reads of the
recipe and of config.pbtxt, is compared with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from rich.progress import Progress

from build_scripts import code, fetch, ranks, recipe, stages
from build_scripts import job as jobs
from build_scripts.job import PROJECT, REPOSITORY, Job
from build_scripts.stages import Step
from python_mp.model.config import ModelConfig
from python_mp.model.parameters import Parameters
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


def copied(repository: Path, source: str, *names: str) -> Path:
    """The folder of a model `m` with these files of a model of the project."""
    model = repository / "m"
    model.mkdir(parents=True)
    for name in names:
        shutil.copy(REPOSITORY / source / name, model)
    return model


def ranker(repository: Path) -> None:
    model = copied(repository, "ranker", "config.pbtxt", "module.py", "seeded.py", "recipe.toml")
    text = (model / "recipe.toml").read_text()
    text = text.replace('"torch"', '"onnxruntime"').replace('"float32"', '"int8"')
    text = text.replace("[accuracy.float32]\nmax_error = 1e-4", "[accuracy]\nmax_error = 1e9")
    (model / "recipe.toml").write_text(f"{text}\n[calibration]\nsamples = 8\n")


def encoder(repository: Path, engine: str = "torch", dtype: str = "float32") -> None:
    model = copied(repository, "embed_encoder", "config.pbtxt")
    config = model / "config.pbtxt"
    task = 'parameters { key: "task" value { string_value: "embed" } }'
    config.write_text(config.read_text().replace("384", "8") + task)
    source = tiny_bert(repository.parent / "checkpoint")
    (model / "recipe.toml").write_text(
        f'family = "transformers"\nsource = "{source}"\nengine = "{engine}"\ndtype = "{dtype}"\n'
        "[shapes]\ntokens = [1, 8, 64]\n[accuracy]\nsamples = 8\ncosine_min = 0.9\n"
    )


def compiled(repository: Path) -> None:
    encoder(repository, "aot_inductor")


def tensorrt(repository: Path) -> None:
    """ModelOpt patches ONNX Runtime; for the others it must be as it was."""
    encoder(repository, "tensorrt", "float16")


def tokenizer(repository: Path) -> None:
    model = copied(repository, "embed_tokenizer", "config.pbtxt")
    source = tiny_bert(repository.parent / "checkpoint")
    (model / "recipe.toml").write_text(f'family = "tokenizer"\nsource = "{source}"\n')


LONG = {"marks": pytest.mark.campaign}


@pytest.fixture(
    params=[pytest.param(ranker, **LONG), encoder, tokenizer],
    ids=lambda make: make.__name__,
)
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


READ_FOR_THEIR_MEANING = ("config.pbtxt", "recipe.toml")


def keys(job: Job) -> dict[str, str]:
    return {name: step.key for name, step in stages.plan(job).items()}


@pytest.mark.timeout(240)
def test_whatever_a_stage_opens_is_part_of_its_key(
    built: tuple[Job, dict[str, set[Path]]],
) -> None:
    job, opened = built
    assert opened.keys() == keys(job).keys()
    model = (job.folder, job.folder.parent.parent / "checkpoint")
    edited = 0
    for stage, paths in opened.items():
        covered = {code._file(name) for name in _covered(job, stage)}
        for path in filter(Path.is_file, paths - {RUNS_THE_STAGES}):
            if any(map(path.is_relative_to, code.ROOTS.values())):
                assert path in covered, f"{stage} opened {path}, which is in no key of its own"
            elif any(map(path.is_relative_to, model)) and path.name not in READ_FOR_THEIR_MEANING:
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


def test_somebodys_own_package_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the libraries that it imports; the project's stages name their own."""
    make = (
        "import numpy, json, rich, of_another\nfrom . import data\n"
        "import beside_for_test, spaced.part\n"
        "def later():\n    import PIL.Image"
    )
    files = {
        "theirs_for_test/__init__.py": "",
        "theirs_for_test/make.py": make,
        "theirs_for_test/data.py": "",
        "beside_for_test.py": "import safetensors.torch",
        "spaced/part.py": "",
        "venv/site-packages/of_another.py": "",  # An environment that this one sees.
        "weights.py": "import theirs_for_test.make\nfrom python_mp.sharding import shard",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "venv" / "site-packages")
    found = code.hashes("theirs_for_test.make")
    theirs = {name for name in found if name.startswith("theirs_for_test.")}
    assert theirs == {"theirs_for_test.make", "theirs_for_test.data"}
    assert found.keys() - theirs == {"theirs_for_test", "beside_for_test", "spaced.part"}
    of_file = code.of_file(tmp_path / "weights.py")
    assert found.items() <= of_file.items()
    assert {"weights.py", "python_mp.sharding.shard"} <= of_file.keys()
    libraries = {name: said for name, said in of_file.items() if name.startswith("library ")}
    tools = ("numpy", "safetensors", "pillow")
    assert libraries == {f"library {tool}": version(tool) for tool in tools}


# -- what is read of the recipe and of config.pbtxt ----------------------------------------------

NOTED = (
    *(recipe.Recipe, recipe.Shapes, recipe.Calibration, recipe.Accuracy, recipe.TensorRt),
    *(ModelConfig, Parameters),
)
DECIDE_NOTHING = {f"ModelConfig.{each}" for each in ("name", "folder", "version", "queue_seconds")}


@contextmanager
def noted(patched: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The fields that are read meanwhile, as `Class.field`."""
    read: set[str] = set()

    def noting(kind: type) -> Callable[[Any, str], Any]:
        names = get_type_hints(kind).keys()

        def get(self: Any, name: str) -> Any:
            if name in names:
                read.add(f"{kind.__name__}.{name}")
            return object.__getattribute__(self, name)

        return get

    with patched.context() as patch:
        for kind in NOTED:
            patch.setattr(kind, "__getattribute__", noting(kind), raising=False)
        yield read


def in_the_key(
    job: Job, steps: dict[str, Step], name: str, patched: pytest.MonkeyPatch
) -> set[str]:
    """What was read for the key of a stage, and of those whose outputs it is given."""
    fresh = replace(job)
    fresh.__dict__["config"] = job.config
    step = steps[name]
    with noted(patched) as read:
        stages._step(fresh, name, step.stage, steps)
        stages.applies(step.stage, fresh)
    needs = (in_the_key(job, steps, need, patched) for need in step.stage.NEEDS if need in steps)
    return read.union(*needs)


def serial(job: Job, work: Callable[..., None], out: Path, _progress: Progress, _what: str) -> None:
    for rank in range(job.world_size):
        work(job, rank, out)


def compile_nothing(_program: object, package_path: str, **_: object) -> None:
    Path(package_path).write_text("compiled")


@pytest.mark.parametrize(
    "make", [tensorrt, pytest.param(ranker, **LONG), pytest.param(encoder, **LONG), compiled]
)
def test_what_a_stage_reads_of_them_is_in_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(Job, "name", "m")  # it shows engine and layout
    monkeypatch.setattr(ranks, "each", serial)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_nothing)
    make(tmp_path / "repository")
    job = jobs.load("m", tmp_path / "repository", workspace=tmp_path / "workspace")
    steps = stages.plan(job)
    left_out = {"verify", "compile"} if make is tensorrt else {"verify"}
    for name in [name for name in steps if name not in left_out]:
        with noted(monkeypatch) as read:
            stages.ensure(job, steps, name, Progress(disable=True))
        assert read - DECIDE_NOTHING - in_the_key(job, steps, name, monkeypatch) == set(), name


DISTRIBUTIONS = cache(packages_distributions)
PASSED_OVER = {"rich", "protobuf", "tritonclient", "huggingface_hub", "msgspec", "psutil", "gguf"}
"""They show progress, ask for memory, read what is in the key by its meaning or its commit, or make
a folder that has a key of its own, of a GGUF file."""
NOT_RUN = {
    "fetch": {"onnx", "onnxruntime"},
    "reference": {"onnx", "onnxruntime"},
    "step": {"numpy", "onnx", "onnxruntime", "safetensors", "torch"},
    "shards": {"numpy", "onnx", "onnxruntime", "pillow", "sentencepiece", "tokenizers"},
    "export": {
        "numpy",
        "onnxruntime",
        "pillow",
        "sentencepiece",
        "tokenizers",
        "transformers",
    },
    "quantise": {"safetensors", "transformers"},
    "compile": {
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "pillow",
        "safetensors",
        "sentencepiece",
        "tokenizers",
        "transformers",
    },
    "verify": {"onnx"},
}
"""Of the libraries that a stage imports: those of engines and stages that it only mentions."""


@pytest.mark.parametrize("name", [*stages.ORDER, "step"])
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
