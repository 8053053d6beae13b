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
from build_scripts.tensorrt import builder, plan
from build_scripts.tensorrt.profiles import Profile, Shape
from tests.support.graphs import graph
from tests.support.tensorrt.bindings import bindings
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
        args = self.graph, self.plan, [PROFILE], TensorRt(**options), self.cache, self.progress
        return plan.build(*args)

    def build_all(self, out: Path, **recipe: Any) -> None:
        """Two ranks whose graphs lie in the folder."""
        given = {"dtype": "float32", "shapes": Shapes(rows=(1, 2, 8)), "tensorrt": TensorRt()}
        parameters = SimpleNamespace(max_batch_tokens=8)
        job: Any = SimpleNamespace(
            model="doubler",
            recipe=SimpleNamespace(**given | recipe),
            config=SimpleNamespace(parameters=parameters),
            world_size=2,
            workspace=self.folder,
            output=lambda _stage: self.folder,
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
    [(content, path)] = bench.fake.parsed  # where collectives have the domain of the parser
    assert path == str(bench.graph)
    assert [node.domain for node in onnx.load_from_string(content).graph.node] == [""]


def test_options_of_the_recipe(make: Make) -> None:
    bench = make()
    bench.build(workspace_gib=0.5, optimization_level=5, hardware_compatibility="ampere_plus")
    assert not bench.flags
    [config] = bench.fake.configs
    assert config.members["builder_optimization_level"] == 5
    level = bindings().HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.members["hardware_compatibility_level"] == level
    assert config.workspace == 1 << 29
    bench.build(version_compatible=True, refit=True, strip_plan=True)
    assert bench.flags == {"VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN"}
    assert bench.fake.host_code == [False, True]
    bench.build(strip_plan=True)
    assert bench.flags == {"STRIP_PLAN", "REFIT_IDENTICAL"}


def test_the_timing_cache_is_read_and_written(make: Make) -> None:
    """The library adds a + each time."""
    bench = make()
    bench.build()
    bench.build()
    assert bench.cache.read_bytes() == b"++"
    bench.fake.fails = "cache"  # As on another GPU: it starts anew.
    bench.build()
    assert bench.cache.read_bytes() == b"+"


def test_why_it_failed_is_said(make: Make) -> None:
    for fails, said in (
        ("graph", r"rank0.onnx: Einsum 'mix': unsupported equation$"),
        ("build", "cannot be built: no tactic for MatMul$"),
        ("load", "cannot be loaded: built for another GPU$"),
        ("profile", "has no profile .*TensorRT gave no reason$"),
        ("gpu", "TensorRT finds no GPU or driver that it can use here"),
    ):
        with pytest.raises(BuildError, match=said):
            make(fails=fails).build()


def test_ctrl_c_ends_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.progress, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.build()
    assert not bench.plan.exists()


def test_it_needs_the_library(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.1"))
    with pytest.raises(BuildError, match=r"TensorRT 11; here is 10\.16\.1"):
        bench.build()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BuildError, match="TensorRT 11, which is not installed here"):
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
    assert facts["versions"]["driver"] == "580.65.06"
    assert facts["versions"]["tensorrt"] == bindings().__version__
    assert facts["options"]["strip_plan"] is True
    made = ("model.plan.rank{}", "model.plan.rank{}.json", "rank{}.onnx")
    files = {name.format(rank) for name in made for rank in (0, 1)}
    assert {path.name for path in out.iterdir()} == files | {"facts.json"}
    assert bench.fake.configs[1].profiles == [{"x": ((1, 4), (2, 4), (8, 4))}]


def test_the_longest_bounds_an_encoder(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    for rank in range(2):
        text = "g (int32[r, w] gather) => (int32[r, w] y) { y = Identity (gather) }"
        onnx.save(graph(text), bench.folder / f"rank{rank}.onnx")
    source = SimpleNamespace(folder=bench.folder)
    monkeypatch.setattr(builder.fetch, "read", lambda job: source)
    (bench.folder / "config.json").write_text(
        '{"model_type": "bert", "max_position_embeddings": 100}'
    )
    bench.build_all(bench.folder, family="transformers", shapes=Shapes(tokens=(1, 512, 4096)))
    widest = [profile["gather"][2] for profile in bench.fake.configs[0].profiles]
    assert widest == [(4096, 32), (249, 100)]


def test_batches_beyond_all_plans(make: Make) -> None:
    for rows, said in (
        ((1, 2, 7), r"batches of 8 rows .* built for up to 7 \(rows\)"),
        ((2, 4, 8), "smallest of `rows` in recipe.toml must be 1, not 2"),
    ):
        bench = make()
        with pytest.raises(BuildError, match=said):
            bench.build_all(bench.folder, family="module", shapes=Shapes(rows=rows))
