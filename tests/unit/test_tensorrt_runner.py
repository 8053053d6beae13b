"""A rank's TensorRT runner, call by call against the real API, with plans that double numbers."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from python_mp.model.errors import EngineFailed, LoadError, RequestFailed
from python_mp.model.manifest import Manifest
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.collectives.distributed import Distributed
from python_mp.rank.engines import tensorrt as engine
from python_mp.rank.engines import tensorrt_api
from python_mp.rank.engines.tensorrt_graph import TensorRtGraph
from python_mp.rank.engines.tensorrt_plan import Plan
from python_mp.sharding.packed import Packed
from tests.support.configs import manifest
from tests.support.tensorrt.bindings import bindings
from tests.support.tensorrt.cuda import Cuda
from tests.support.tensorrt.stand_in import Library

CPU = torch.device("cpu")
COMMUNICATOR = 0x5EED
ONES = {"x": np.ones((3, 4), np.float32)}


class Bench:
    """A model's version directory with a plan, and a library to run it with."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, **library: Any) -> None:
        self.cuda, graph = Cuda(patch), engine.TensorRtGraph
        self.fake = Library(bindings(), self.cuda, **library)
        self.fake.install(patch)
        self.folder = folder / "doubler" / "1"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "model.plan"
        self.path.write_bytes(b"plan")
        patch.setattr(engine, "TensorRtGraph", lambda plan, _, *more: graph(plan, CPU, *more))

    def graph(self, *args: Any, **kwargs: Any) -> TensorRtGraph:
        return TensorRtGraph(Plan(self.path), CPU, *args, **kwargs)

    def shard(self, **more: Any) -> Any:
        values = {"size": 1, "stages": 1, "world_rank": 0, "folder": self.folder}
        values |= {"device": SimpleNamespace(type="cuda"), "communicator": Alone()}
        return SimpleNamespace(**values | more)


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(**library)`: what the library is to do."""
    return partial(Bench, tmp_path, monkeypatch)


class ProcessGroup:
    """What is asked of torch's group of NCCL ranks."""

    is_connected = False

    def _get_backend(self, device: torch.device) -> ProcessGroup:
        return self

    def eager_connect_single_device(self, device: torch.device) -> None:
        self.is_connected = True

    def _comm_ptr(self) -> int:
        return COMMUNICATOR if self.is_connected else 0


def rows(count: int, offset: float = 0) -> dict[str, torch.Tensor]:
    return {"x": torch.arange(4.0 * count).reshape(count, 4) + offset}


def runs(graph: TensorRtGraph, given: dict[str, torch.Tensor]) -> bool:
    """Whether it doubles them."""
    [(name, y)] = graph(given).items()
    return name == "y" and torch.equal(y, 2 * given["x"].float())


def test_it_computes(make: Make) -> None:
    bench = make()
    graph = bench.graph()
    assert runs(graph, rows(1))
    assert bench.cuda.current.waited == [graph._stream]
    assert graph._stream.waited == [bench.cuda.current]  # type: ignore[attr-defined]
    assert all(runs(graph, rows(count)) for count in (4, 2))
    assert bench.fake.executed == 3
    assert bench.fake.contexts == [0]
    strided = {"x": torch.arange(8.0).reshape(4, 2).T}
    assert runs(graph, strided)
    assert runs(graph, {"x": torch.ones(3, 4, dtype=torch.float64), "unused": torch.ones(1)})


def test_what_comes_again_is_captured_and_the_latest_stay(make: Make) -> None:
    bench = make()
    graph = bench.graph(cuda_graphs=2)
    for time, count in enumerate((1, 1, 2, 2, 1, 3, 3)):  # 3 takes the place of 2, not of 1.
        assert runs(graph, rows(count, time))
    assert [each.replays for each in bench.cuda.graphs] == [1, 0, 0]
    assert runs(graph, rows(1, 9))
    assert bench.cuda.graphs[0].replays == 2
    assert runs(graph, rows(2, 9))
    assert len(bench.cuda.graphs) == 4


def test_the_first_profile_that_fits_is_chosen(make: Make) -> None:
    bench = make(bounds=((1, 2, 4), (3, 8, 16)))
    graph = bench.graph()
    for count in (16, 5, 4, 3):
        assert runs(graph, rows(count))
    assert bench.fake.contexts == [1, 0]
    refused = r"model.plan was not built for a batch of x \[17, 4\]: .*build_scripts.build doubler"
    with pytest.raises(RequestFailed, match=refused):
        graph(rows(17))
    with pytest.raises(RequestFailed, match=r"x \[4\]"):
        graph({"x": torch.ones(4)})


def test_every_dtype_is_known(make: Make) -> None:
    bench = make()
    for name, dtype in tensorrt_api.TORCH_DTYPES.items():
        bench.fake.dtype = name
        assert Plan(bench.path).dtypes == {"x": dtype, "y": dtype}


def test_why_it_failed_is_said(make: Make) -> None:
    causes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"fails": "load"}, r"by TensorRT 11\.4\.\S+ \(built for another GPU\): .*build doubler$"),
        ({"host_names": ("x",)}, "wants 'x' in CPU memory"),
        ({"dtype": "FP4"}, "has 'x' of type FP4"),
        ({"fails": "memory"}, "has no memory to run in"),
        ({"fails": "run"}, "model.plan failed: TensorRT gave no reason"),
    )
    for library, said in causes:
        bench = make(**library)
        with pytest.raises((LoadError, EngineFailed), match=said):
            bench.graph()(rows(1))
    bench.path.unlink()
    with pytest.raises(LoadError, match="is missing: build it with python -m .* doubler"):
        bench.graph()


def test_stripped_plans_are_refitted(make: Make) -> None:
    bench = make(stripped=True)
    weights = bench.folder / "rank0.onnx"
    with pytest.raises(LoadError, match=r"without weights, and \S+rank0.onnx is missing"):
        Plan(bench.path, weights=weights)
    weights.touch()
    Plan(bench.path, weights=weights)
    assert bench.fake.refitted == [str(weights)]


def test_the_manifest_says_what_it_fits_and_whether_it_has_host_code(make: Make) -> None:
    bench = make()
    engine.TensorRtStage(bench.shard(), 4)
    for allowed in (True, False):
        built(version_compatible=allowed).write(bench.folder)
        engine.TensorRtStage(bench.shard(), 4)
    assert bench.fake.host_code == [False, True, False]
    for misfit, said in (
        (built(gpu="A100"), "built for the GPU A100, but there is H200; run"),
        (built(tensorrt="11.3.0.99"), r"built by TensorRT 11\.3\.0\.99, but 11\.4\."),
    ):
        misfit.write(bench.folder)
        with pytest.raises(LoadError, match=said):
            engine.TensorRtStage(bench.shard(), 4)


def built(gpu: str = "H200", tensorrt: str = "", **options: bool) -> Manifest:
    versions = {"tensorrt": tensorrt or bindings().__version__}
    hardware = {"gpu": {"name": gpu, "compute_capability": "9.0"}}
    return manifest(
        model="doubler", engine="tensorrt", options=options, versions=versions, hardware=hardware
    )


def test_a_stage_hands_on_what_is_hidden(make: Make) -> None:
    bench = make()
    compute = engine.TensorRtStage(bench.shard(), 4)
    assert compute(Packed(ONES, CPU), None)["y"].eq(2).all()  # type: ignore[call-overload]
    bench.fake.names = ("hidden", "hidden_out")
    compute = engine.TensorRtStage(bench.shard(), 4)
    handed_on = compute(Packed({}, CPU), torch.ones(3, 4))
    assert isinstance(handed_on, torch.Tensor)
    assert torch.equal(handed_on, torch.full((3, 4), 2.0))


def test_tensor_parallel_hands_the_communicator_over_and_captures_nothing(make: Make) -> None:
    bench = make()
    bench.path.rename(bench.folder / "model.plan.rank3")
    communicator = object.__new__(Distributed)
    communicator.group = ProcessGroup()  # type: ignore[assignment]
    shard = bench.shard(size=2, stages=2, world_rank=3, communicator=communicator)
    compute = engine.TensorRtStage(shard, 4)
    for _ in range(3):
        compute(Packed(ONES, CPU), None)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    assert [pointer(each, None) for each in bench.fake.communicators] == [COMMUNICATOR]
    assert not bench.cuda.graphs


def test_what_a_stage_needs(make: Make) -> None:
    bench = make(bounds=((1, 2, 4), (5, 8, 16)))
    engine.TensorRtStage(bench.shard(), 16)
    with pytest.raises(LoadError, match="batches of up to 16 rows: set the parameter"):
        engine.TensorRtStage(bench.shard(), 17)
    with pytest.raises(LoadError, match="runs on GPUs: set `kind: KIND_GPU`"):
        engine.TensorRtStage(bench.shard(device=CPU), 4)
    bench.path.rename(bench.folder / "model.plan.rank0")
    with pytest.raises(LoadError, match="`collectives` to nccl"):
        engine.TensorRtStage(bench.shard(size=2), 4)


def test_contexts_end_before_their_communicator(make: Make) -> None:
    """`Stage.close` drops what computes and then leaves the group: nothing else may hold it."""
    bench = make()
    graph = bench.graph()
    graph(rows(1))
    [context] = map(weakref.ref, graph._contexts.values())
    del graph
    assert context() is None
