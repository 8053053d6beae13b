"""The TensorRT build, call by call against the real API: what is misspelt or gone fails here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from rich.progress import Progress

from build_scripts.errors import BuildError
from build_scripts.recipe import Shapes, TensorRt
from build_scripts.tensorrt import builder, plan, watch
from build_scripts.tensorrt.profiles import Profile, Shape
from python_mp.rank import tensorrt_api
from tests.tensorrt_api import lines
from tests.tensorrt_api.bindings import bindings
from tests.tensorrt_api.cuda import Cuda
from tests.tensorrt_api.fake_library import Library
from tests.tensorrt_api.fakes import check_overrides

PROFILE: Profile = {"x": Shape((1, 4), (2, 4), (4, 4))}


class Bench:
    """A graph with a collective in a folder, and a library to build it with."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, **library: Any) -> None:
        self.fake = Library(bindings(), **library)
        self.api = self.fake.install(patch)
        self.graph, self.plan = folder / "rank0.onnx", folder / "model.plan"
        self.cache = folder / "cache" / "timing"
        node = helper.make_node("DistCollective", ["x"], ["y"], domain="python_mp", nb_rank=2)
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy"]
        graph = helper.make_graph([node], "graph", ends[:1], ends[1:])
        onnx.save(helper.make_model(graph), self.graph)
        self.progress = Progress(disable=True)

    def build(self, **options: Any) -> dict[str, Any]:
        chosen = TensorRt(**options)
        args = self.graph, self.plan, [PROFILE], chosen, self.cache, self.progress
        return plan.build(*args)

    @property
    def flags(self) -> set[str]:
        return {flag.name for flag in self.fake.configs[-1].flags}


def builds(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    report = bench.build()
    assert bench.plan.read_bytes() == b"plan"
    assert report == json.loads((folder / "model.plan.json").read_text())
    assert report["engine"] == {"Layers": ["double"]}
    assert (report["bytes"], report["profiles"]) == (4, 1)
    assert report["tensorrt"] == bindings().__version__
    [config] = bench.fake.configs
    assert config.profiles == [{"x": ((1, 4), (2, 4), (4, 4))}]
    assert config.cleared == [bindings().BuilderFlag.TF32]
    assert not bench.flags
    assert not config.workspace
    assert bench.fake.host_code == [False]


def rewrites_the_domain_of_collectives(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    bench.build()
    [(content, path)] = bench.fake.parsed
    assert path == str(bench.graph)
    assert [node.domain for node in onnx.load_from_string(content).graph.node] == [""]
    assert [node.domain for node in onnx.load(bench.graph).graph.node] == ["python_mp"]


def sets_options(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    bench.build(
        workspace_gib=0.5,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        refit=True,
        strip_plan=True,
    )
    [config] = bench.fake.configs
    level: Any = config
    assert level.builder_optimization_level == 5
    assert level.hardware_compatibility_level == bindings().HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.workspace == 1 << 29
    assert bench.flags == {"VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN"}
    assert bench.fake.host_code == [True]
    bench.build(strip_plan=True)
    assert bench.flags == {"STRIP_PLAN", "REFIT_IDENTICAL"}


def keeps_the_timing_cache(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    bench.build()
    bench.build()
    assert bench.cache.read_bytes() == b"++"
    bench.fake.takes_cache = False  # As on another GPU: it starts anew.
    bench.build()
    assert bench.cache.read_bytes() == b"+"
    assert [path.name for path in bench.cache.parent.iterdir()] == ["timing"]


def refuses_a_graph(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, takes_graph=False)
    with pytest.raises(BuildError, match=r"rank0.onnx: Einsum 'mix': unsupported equation$"):
        bench.build()


def says_why_a_build_failed(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, builds=False)
    with pytest.raises(BuildError, match="cannot be built: no tactic for MatMul$"):
        bench.build()
    assert not bench.plan.exists()


def says_why_a_plan_does_not_load(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, loads=False)
    with pytest.raises(BuildError, match="cannot be loaded: built for another GPU$"):
        bench.build()


def refuses_a_profile(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, takes_profile=False)
    with pytest.raises(BuildError, match="has no profile .*TensorRT gave no reason$"):
        bench.build()


def ends_at_ctrl_c(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    patch.setattr(bench.progress, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.build()
    assert not bench.plan.exists()


def needs_the_library(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    patch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.1"))
    with pytest.raises(BuildError, match=r"needs TensorRT 11; here is 10\.16\.1"):
        bench.build()
    patch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BuildError, match="needs TensorRT 11, which is not installed here"):
        bench.build()


def builds_every_rank(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    (folder / "rank1.onnx").write_bytes(bench.graph.read_bytes())
    job = a_job(folder, family="module", tensorrt=TensorRt(strip_plan=True))
    out = folder / "out"
    out.mkdir()
    Cuda(patch)
    patch.setattr(builder, "DRIVER", folder / "version")
    (folder / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun"
    )
    builder.run(job, out, bench.progress)
    facts = json.loads((out / "facts.json").read_text())
    assert facts["hardware"] == {"gpu": {"name": "H200", "compute_capability": "9.0"}}
    assert facts["versions"]["driver"] == "580.65.06"
    assert facts["versions"]["tensorrt"] == bindings().__version__
    assert facts["options"]["strip_plan"] is True
    made = ["facts.json"]
    made += ["model.plan.rank0", "model.plan.rank0.json", "model.plan.rank1"]
    made += ["model.plan.rank1.json", "rank0.onnx", "rank1.onnx"]
    assert sorted(path.name for path in out.iterdir()) == made
    assert bench.fake.configs[1].profiles == [{"x": ((1, 4), (2, 4), (8, 4))}]


def bounds_sequences_of_encoders(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    Cuda(patch)
    ends = [
        helper.make_tensor_value_info(n, TensorProto.INT32, ["r", "w"]) for n in ("gather", "y")
    ]
    node = helper.make_node("Identity", ["gather"], ["y"])
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:])
    for rank in range(2):
        onnx.save(helper.make_model(graph), folder / f"rank{rank}.onnx")
    patch.setattr(builder.fetch, "read", lambda job: SimpleNamespace(folder=folder))
    (folder / "config.json").write_text('{"max_position_embeddings": 100}')
    sizes = Shapes(tokens=(1, 512, 4096))
    builder.run(a_job(folder, family="encoder", shapes=sizes), folder, bench.progress)
    widest = [profile["gather"][2] for profile in bench.fake.configs[0].profiles]
    assert widest == [(4096, 32), (249, 100)]


def refuses_batches_larger_than_the_plan(folder: Path, patch: pytest.MonkeyPatch) -> None:
    job = a_job(folder, family="module", shapes=Shapes(rows=(1, 2, 7)))
    with pytest.raises(BuildError, match=r"batches of 8 rows .* built for up to 7 \(rows\)"):
        builder.run(job, folder, Bench(folder, patch).progress)
    job = a_job(folder, family="module", shapes=Shapes(rows=(2, 4, 8)))
    with pytest.raises(BuildError, match="smallest of `rows` in recipe.toml must be 1, not 2"):
        builder.run(job, folder, Bench(folder, patch).progress)


def a_job(folder: Path, **recipe: Any) -> Any:
    """Two ranks whose graphs lie in `folder`."""
    given = {"dtype": "float32", "shapes": Shapes(rows=(1, 2, 8)), "tensorrt": TensorRt()}
    return SimpleNamespace(
        model="doubler",
        recipe=SimpleNamespace(**given | recipe),
        config=SimpleNamespace(parameters=SimpleNamespace(max_batch_tokens=8)),
        world_size=2,
        workspace=folder,
        output={"export": folder}.__getitem__,
    )


def needs_a_gpu(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, has_gpu=False)
    with pytest.raises(BuildError, match="TensorRT finds no GPU or driver that it can use here"):
        bench.build()


CASES: list[Callable[[Path, pytest.MonkeyPatch], None]] = [
    builds,
    rewrites_the_domain_of_collectives,
    sets_options,
    keeps_the_timing_cache,
    refuses_a_graph,
    says_why_a_build_failed,
    says_why_a_plan_does_not_load,
    refuses_a_profile,
    ends_at_ctrl_c,
    needs_the_library,
    needs_a_gpu,
    builds_every_rank,
    bounds_sequences_of_encoders,
    refuses_batches_larger_than_the_plan,
]


@pytest.mark.parametrize("case", CASES)
def test_builder(
    case: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case(tmp_path, monkeypatch)


def test_every_line_is_checked(tmp_path: Path) -> None:
    """A call to TensorRT in a line that no case runs would be checked by nobody."""
    assert lines.unreached_by(CASES, tmp_path, builder, plan, watch) == []


def test_interfaces_are_implemented_whole() -> None:
    trt = bindings()
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
    assert tensorrt_api.messages(recorder) == "TensorRT gave no reason"
    code = trt.ErrorCodeTRT.INTERNAL_ERROR
    assert all(recorder.report_error(code, text) for text in ("one", "two", "one"))
    assert (recorder.num_errors(), recorder.get_error_code(2)) == (3, code)
    assert tensorrt_api.messages(recorder) == "one; two"
    assert not recorder.has_overflowed()
    recorder.clear()
    assert recorder.num_errors() == 0
