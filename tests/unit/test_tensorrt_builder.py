"""The TensorRT build, call by call against the real API: what is misspelt or gone fails here."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from rich.progress import Progress

from build_scripts.errors import BuildError
from build_scripts.recipe import Shapes, TensorRt
from build_scripts.tensorrt import builder, plan, watch
from build_scripts.tensorrt.profiles import Profile, Shape
from python_mp.rank.engines import tensorrt_api
from tests.support.graphs import graph
from tests.support.tensorrt.bindings import bindings
from tests.support.tensorrt.checked import check_overrides
from tests.support.tensorrt.cuda import Cuda
from tests.support.tensorrt.stand_in import Library

PROFILE: Profile = {"x": Shape((1, 4), (2, 4), (4, 4))}


class Bench:
    """A graph with a collective in a folder, and a library to build it with."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, **library: Any) -> None:
        self.fake = Library(bindings(), **library)
        self.fake.install(patch)
        Cuda(patch)
        self.folder, self.graph, self.plan = folder, folder / "rank0.onnx", folder / "model.plan"
        self.cache = folder / "cache" / "timing"
        sums = "y = python_mp.DistCollective <nb_rank: int = 2> (x)"
        onnx.save(graph(f"g (float[n, 4] x) => (float[n, 4] y) {{ {sums} }}"), self.graph)
        self.progress = Progress(disable=True)

    def build(self, **options: Any) -> dict[str, Any]:
        chosen = TensorRt(**options)
        args = self.graph, self.plan, [PROFILE], chosen, self.cache, self.progress
        return plan.build(*args)

    def build_all(self, out: Path, **recipe: Any) -> None:
        """Two ranks whose graphs lie in the folder."""
        given = {"dtype": "float32", "shapes": Shapes(rows=(1, 2, 8)), "tensorrt": TensorRt()}
        job: Any = SimpleNamespace(
            model="doubler",
            recipe=SimpleNamespace(**given | recipe),
            config=SimpleNamespace(parameters=SimpleNamespace(max_batch_tokens=8)),
            world_size=2,
            workspace=self.folder,
            output={"export": self.folder}.__getitem__,
        )
        builder.run(job, out, self.progress)

    @property
    def flags(self) -> set[str]:
        return {flag.name for flag in self.fake.configs[-1].flags}


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(**library)`: what the library is to do."""
    return partial(Bench, tmp_path, monkeypatch)


def test_a_plan_and_its_report(make: Make) -> None:
    bench = make()
    report = bench.build()
    assert bench.plan.read_bytes() == b"plan"
    assert report == json.loads((bench.folder / "model.plan.json").read_text())
    assert report["engine"] == {"Layers": ["double"]}
    assert (report["bytes"], report["profiles"]) == (4, 1)
    assert report["tensorrt"] == bindings().__version__
    [config] = bench.fake.configs
    assert config.profiles == [{"x": ((1, 4), (2, 4), (4, 4))}]
    assert config.cleared == [bindings().BuilderFlag.TF32]
    assert not bench.flags
    assert not config.workspace
    assert bench.fake.host_code == [False]


def test_collectives_get_the_domain_of_the_parser(make: Make) -> None:
    bench = make()
    bench.build()
    [(content, path)] = bench.fake.parsed
    assert path == str(bench.graph)
    assert [node.domain for node in onnx.load_from_string(content).graph.node] == [""]
    assert [node.domain for node in onnx.load(bench.graph).graph.node] == ["python_mp"]


def test_options_of_the_recipe(make: Make) -> None:
    bench = make()
    bench.build(
        workspace_gib=0.5,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        refit=True,
        strip_plan=True,
    )
    [config] = bench.fake.configs
    assert config.members["builder_optimization_level"] == 5
    level = bindings().HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.members["hardware_compatibility_level"] == level
    assert config.workspace == 1 << 29
    assert bench.flags == {"VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN"}
    assert bench.fake.host_code == [True]
    bench.build(strip_plan=True)
    assert bench.flags == {"STRIP_PLAN", "REFIT_IDENTICAL"}


def test_the_timing_cache_is_read_and_written(make: Make) -> None:
    """The library adds a + each time."""
    bench = make()
    bench.build()
    bench.build()
    assert bench.cache.read_bytes() == b"++"
    bench.fake.takes_cache = False  # As on another GPU: it starts anew.
    bench.build()
    assert bench.cache.read_bytes() == b"+"
    assert [path.name for path in bench.cache.parent.iterdir()] == ["timing"]


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ({"takes_graph": False}, r"rank0.onnx: Einsum 'mix': unsupported equation$"),
        ({"builds": False}, "cannot be built: no tactic for MatMul$"),
        ({"loads": False}, "cannot be loaded: built for another GPU$"),
        ({"takes_profile": False}, "has no profile .*TensorRT gave no reason$"),
        ({"has_gpu": False}, "TensorRT finds no GPU or driver that it can use here"),
    ],
)
def test_why_it_failed_is_said(make: Make, library: dict[str, bool], said: str) -> None:
    bench = make(**library)
    with pytest.raises(BuildError, match=said):
        bench.build()
    assert bench.plan.exists() == ("loads" in library)


def test_ctrl_c_ends_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.progress, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.build()
    assert not bench.plan.exists()


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (SimpleNamespace(__version__="10.16.1"), r"TensorRT 11; here is 10\.16\.1"),
        (None, "TensorRT 11, which is not installed here"),
    ],
)
def test_it_needs_the_library(
    make: Make, monkeypatch: pytest.MonkeyPatch, installed: Any, said: str
) -> None:
    bench = make()
    monkeypatch.setitem(sys.modules, "tensorrt", installed)
    with pytest.raises(BuildError, match=said):
        bench.build()


def test_all_ranks_and_what_they_are_bound_to(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    (bench.folder / "rank1.onnx").write_bytes(bench.graph.read_bytes())
    out = bench.folder / "out"
    out.mkdir()
    monkeypatch.setattr(builder, "DRIVER", bench.folder / "version")
    builder.DRIVER.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun")
    bench.build_all(out, family="module", tensorrt=TensorRt(strip_plan=True))
    facts = json.loads((out / "facts.json").read_text())
    assert facts["hardware"] == {"gpu": {"name": "H200", "compute_capability": "9.0"}}
    assert facts["versions"].items() >= {"driver": "580.65.06"}.items()
    assert facts["versions"]["tensorrt"] == bindings().__version__
    assert facts["options"]["strip_plan"] is True
    made = {f"{name}{rank}" for name in ("model.plan.rank", "rank") for rank in (0, 1)}
    assert {path.name.removesuffix(".onnx") for path in out.iterdir()} == made | {
        "facts.json",
        "model.plan.rank0.json",
        "model.plan.rank1.json",
    }
    assert bench.fake.configs[1].profiles == [{"x": ((1, 4), (2, 4), (8, 4))}]


def test_the_longest_bounds_an_encoder(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    for rank in range(2):
        text = "g (int32[r, w] gather) => (int32[r, w] y) { y = Identity (gather) }"
        onnx.save(graph(text), bench.folder / f"rank{rank}.onnx")
    source = SimpleNamespace(folder=bench.folder)
    monkeypatch.setattr(builder.fetch, "read", lambda job: source)
    (bench.folder / "config.json").write_text('{"max_position_embeddings": 100}')
    bench.build_all(bench.folder, family="encoder", shapes=Shapes(tokens=(1, 512, 4096)))
    widest = [profile["gather"][2] for profile in bench.fake.configs[0].profiles]
    assert widest == [(4096, 32), (249, 100)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((1, 2, 7), r"batches of 8 rows .* built for up to 7 \(rows\)"),
        ((2, 4, 8), "smallest of `rows` in recipe.toml must be 1, not 2"),
    ],
)
def test_batches_beyond_all_plans(make: Make, rows: tuple[int, int, int], said: str) -> None:
    bench = make()
    with pytest.raises(BuildError, match=said):
        bench.build_all(bench.folder, family="module", shapes=Shapes(rows=rows))


def test_interfaces_are_implemented_whole() -> None:
    trt = bindings()
    assert trt.__version__.startswith("11.4.")
    monitor = watch.progress_monitor(trt, Progress(disable=True), "rank0")
    check_overrides(trt.IProgressMonitor, type(monitor))
    check_overrides(trt.IErrorRecorder, type(tensorrt_api.error_recorder(trt)))


def test_progress_is_nested_and_leaves_nothing() -> None:
    progress = Progress(disable=True)
    monitor = watch.progress_monitor(bindings(), progress, "rank0")
    monitor.phase_start("build", None, 2)
    monitor.phase_start("tactics", "build", 5)
    assert monitor.step_complete("tactics", 3)
    build, tactics = progress.tasks
    assert (build.description, tactics.description) == ("rank0: build", "  rank0: tactics")
    assert (tactics.completed, tactics.total) == (4, 5)
    monitor.phase_finish("tactics")
    monitor.phase_finish("build")
    assert monitor.step_complete("unheard of", 0)
    assert not progress.tasks


def test_errors_are_recorded() -> None:
    trt = bindings()
    recorder = tensorrt_api.error_recorder(trt)
    code = trt.ErrorCodeTRT.INTERNAL_ERROR
    assert all(recorder.report_error(code, text) for text in ("one", "two", "one"))
    assert (recorder.num_errors(), recorder.get_error_code(2)) == (3, code)
    assert tensorrt_api.messages(recorder) == "one; two"
    assert not recorder.has_overflowed()
    recorder.clear()
    assert recorder.num_errors() == 0
