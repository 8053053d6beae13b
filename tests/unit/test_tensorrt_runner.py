"""A rank's TensorRT runner, call by call against the real API, with plans that double numbers."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from python_mp.errors import LoadError, RequestFailed
from python_mp.manifest import Manifest
from python_mp.rank import tensorrt_api, tensorrt_graph, tensorrt_plan
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.collectives.distributed import Distributed
from python_mp.rank.engines import tensorrt as engine
from python_mp.rank.packed import Packed
from python_mp.rank.tensorrt_graph import TensorRtGraph
from python_mp.rank.tensorrt_plan import Plan
from tests.tensorrt_api import lines
from tests.tensorrt_api.bindings import bindings
from tests.tensorrt_api.cuda import Cuda
from tests.tensorrt_api.fake_library import Library

CPU = torch.device("cpu")
COMMUNICATOR = 0x5EED


class Bench:
    """A model's version directory with a plan, and a library to run it with."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, **library: Any) -> None:
        self.fake = Library(bindings(), Cuda(patch), **library)
        self.fake.install(patch)
        self.cuda = self.fake.cuda
        self.folder = folder / "doubler" / "1"
        self.folder.mkdir(parents=True)
        self.path = self.folder / "model.plan"
        self.path.write_bytes(b"plan")

    def graph(self, *args: Any, **kwargs: Any) -> TensorRtGraph:
        return TensorRtGraph(Plan(self.path), CPU, *args, **kwargs)

    def shard(self, **more: Any) -> Any:
        values = {
            "size": 1,
            "stages": 1,
            "world_rank": 0,
            "folder": self.folder,
            "device": SimpleNamespace(type="cuda"),
            "communicator": Alone(),
        }
        return SimpleNamespace(**values | more)


class ProcessGroup:
    """What is asked of torch's group of NCCL ranks."""

    def __init__(self) -> None:
        self.connected: list[torch.device] = []

    def _get_backend(self, device: torch.device) -> ProcessGroup:
        return self

    def eager_connect_single_device(self, device: torch.device) -> None:
        self.connected.append(device)

    def _comm_ptr(self) -> int:
        return COMMUNICATOR if self.connected else 0


def rows(count: int, offset: float = 0) -> dict[str, torch.Tensor]:
    return {"x": torch.arange(4.0 * count).reshape(count, 4) + offset}


def runs(graph: TensorRtGraph, given: dict[str, torch.Tensor]) -> bool:
    """Whether it doubles them."""
    [(name, y)] = graph(given).items()
    return name == "y" and torch.equal(y, 2 * given["x"].float())


def computes(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    graph = bench.graph()
    assert all(runs(graph, rows(count)) for count in (1, 4, 2))
    assert bench.fake.executed == 3
    assert bench.fake.contexts == [0]
    strided = {"x": torch.arange(8.0).reshape(4, 2).T}
    assert runs(graph, strided)
    assert runs(graph, {"x": torch.ones(3, 4, dtype=torch.float64), "unused": torch.ones(1)})


def orders_itself_among_streams(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    graph = bench.graph()
    graph(rows(1))
    assert bench.cuda
    assert bench.cuda.current.waited == [graph._stream]
    assert graph._stream.waited == [bench.cuda.current]  # type: ignore[attr-defined]


def captures_what_comes_again(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    graph = bench.graph()
    assert bench.cuda
    for time in range(5):
        assert runs(graph, rows(2, time))
        assert len(bench.cuda.graphs) == (time > 0)
    [captured] = bench.cuda.graphs
    assert captured.replays == 3
    assert runs(graph, rows(3))
    assert runs(graph, rows(2, 9))
    assert captured.replays == 4


def keeps_so_many_captured(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    graph = bench.graph(cuda_graphs=2)
    assert bench.cuda
    for count in (1, 1, 2, 2, 1, 3, 3):  # The third one takes the place of 2, not of 1.
        assert runs(graph, rows(count))
    assert [each.replays for each in bench.cuda.graphs] == [1, 0, 0]
    assert runs(graph, rows(1, 5))
    assert bench.cuda.graphs[0].replays == 2
    assert runs(graph, rows(2, 5))
    assert len(bench.cuda.graphs) == 4


def captures_nothing_if_told(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    graph = bench.graph(cuda_graphs=0)
    assert all(runs(graph, rows(2, time)) for time in range(3))
    assert bench.cuda
    assert not bench.cuda.graphs


def chooses_the_first_profile_that_fits(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, bounds=((1, 2, 4), (3, 8, 16)))
    graph = bench.graph()
    for count in (16, 5, 4, 3):
        assert runs(graph, rows(count))
    assert bench.fake.contexts == [1, 0]
    refused = r"model.plan was not built for a batch of x \[17, 4\]: .*build_scripts.build doubler"
    with pytest.raises(RequestFailed, match=refused):
        graph(rows(17))
    with pytest.raises(RequestFailed, match=r"x \[2, 5\]"):
        graph({"x": torch.ones(2, 5)})
    with pytest.raises(RequestFailed, match=r"x \[4\]"):
        graph({"x": torch.ones(4)})


def hands_over_the_communicator(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, bounds=((1, 2, 4), (5, 8, 16)))
    group: Any = ProcessGroup()
    graph = bench.graph(tensorrt_plan.communicator(group, CPU))
    assert group.connected == [CPU]
    for count in (2, 2, 8):
        assert runs(graph, rows(count))
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    assert [pointer(each, None) for each in bench.fake.communicators] == [COMMUNICATOR] * 2


def knows_every_dtype(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    for name, dtype in tensorrt_api.TORCH_DTYPES.items():
        bench.fake.dtype = name
        assert Plan(bench.path).dtypes == {"x": dtype, "y": dtype}
    bench.fake.dtype = "FP4"
    with pytest.raises(LoadError, match="has 'x' of type FP4"):
        Plan(bench.path)


def refuses_what_does_not_load(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, loads=False)
    wanted = (
        r"1/model\.plan cannot be loaded by TensorRT 11\.4\.\S+ \(built for another GPU\): build it"
        r" again on this machine with python -m build_scripts\.build doubler$"
    )
    with pytest.raises(LoadError, match=wanted):
        Plan(bench.path)
    bench.path.unlink()
    with pytest.raises(LoadError, match="is missing: build it with python -m .* doubler"):
        Plan(bench.path)


def refuses_inputs_in_cpu_memory(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, host_names=("x",))
    with pytest.raises(LoadError, match="wants 'x' in CPU memory"):
        Plan(bench.path)


def says_why_it_failed(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, runs=False)
    with pytest.raises(RequestFailed, match="model.plan failed: TensorRT gave no reason"):
        bench.graph()(rows(1))
    bench.fake.has_memory = False
    with pytest.raises(LoadError, match="has no memory to run in"):
        bench.graph()(rows(1))


def refits_stripped_plans(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, stripped=True)
    weights = bench.folder / "rank0.onnx"
    with pytest.raises(LoadError, match=r"without weights, and \S+rank0.onnx is missing"):
        Plan(bench.path, weights=weights)
    weights.touch()
    Plan(bench.path, weights=weights)
    assert bench.fake.refitted == [str(weights)]


def allows_host_code_where_the_manifest_does(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    engine.TensorRtStage(bench.shard(), 4)
    for allowed in (True, False):
        manifest(version_compatible=allowed).write(bench.folder)
        engine.TensorRtStage(bench.shard(), 4)
    assert bench.fake.host_code == [False, True, False]


def refuses_plans_for_other_machines(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    manifest(gpu="A100").write(bench.folder)
    with pytest.raises(LoadError, match=r"built for the GPU A100, but there is H200; run"):
        engine.TensorRtStage(bench.shard(), 4)
    manifest(tensorrt="11.3.0.99").write(bench.folder)
    with pytest.raises(
        LoadError, match=r"built by TensorRT 11\.3\.0\.99, but 11\.4\.\S+ is running"
    ):
        engine.TensorRtStage(bench.shard(), 4)


def manifest(gpu: str = "H200", tensorrt: str = "", **options: bool) -> Manifest:
    values: dict[str, Any] = {
        field.name: {} for field in fields(Manifest) if field.name != "format"
    }
    values |= {"model": "doubler", "engine": "tensorrt", "options": options}
    values["versions"] = {"tensorrt": tensorrt or bindings().__version__}
    values["hardware"] = {"gpu": {"name": gpu, "compute_capability": "9.0"}}
    return Manifest(**values)


def computes_a_stage(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    patch.setattr(engine, "TensorRtGraph", partial(on_cpu, engine.TensorRtGraph))
    compute = engine.TensorRtStage(bench.shard(), 4)
    result = compute(Packed({"x": np.ones((3, 4), np.float32)}, CPU), None)
    assert isinstance(result, dict)
    assert torch.equal(result["y"], torch.full((3, 4), 2.0))


def hands_on_what_is_hidden(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, names=("hidden", "hidden_out"))
    patch.setattr(engine, "TensorRtGraph", partial(on_cpu, engine.TensorRtGraph))
    compute = engine.TensorRtStage(bench.shard(), 4)
    result = compute(Packed({}, CPU), torch.ones(3, 4))
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, torch.full((3, 4), 2.0))


def on_cpu(graph: Callable[..., Any], plan: Plan, _device: Any, *more: Any) -> Any:
    return graph(plan, CPU, *more)


def runs_tensor_parallel(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    bench.path.rename(bench.folder / "model.plan.rank3")
    communicator = object.__new__(Distributed)
    communicator.group = ProcessGroup()  # type: ignore[assignment]
    patch.setattr(engine, "TensorRtGraph", partial(on_cpu, engine.TensorRtGraph))
    shard = bench.shard(size=2, stages=2, world_rank=3, communicator=communicator)
    compute = engine.TensorRtStage(shard, 4)
    for _ in range(3):
        compute(Packed({"x": np.ones((3, 4), np.float32)}, CPU), None)
    assert len(bench.fake.communicators) == 1
    assert bench.cuda
    assert not bench.cuda.graphs


def needs_gpus_and_nccl(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    with pytest.raises(LoadError, match="runs on GPUs: set `kind: KIND_GPU`"):
        engine.TensorRtStage(bench.shard(device=CPU), 4)
    bench.path.rename(bench.folder / "model.plan.rank0")
    with pytest.raises(LoadError, match="`collectives` to nccl"):
        engine.TensorRtStage(bench.shard(size=2), 4)


def needs_the_library(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch)
    patch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.1"))
    with pytest.raises(LoadError, match=r"needs TensorRT 11; here is 10\.16\.1"):
        Plan(bench.path)
    patch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(LoadError, match="needs TensorRT 11, which is not installed here"):
        Plan(bench.path)


def needs_a_gpu(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, has_gpu=False)
    with pytest.raises(LoadError, match="TensorRT finds no GPU or driver that it can use here"):
        Plan(bench.path)


def loads_as_an_engine(_folder: Path, patch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    patch.setattr(engine.Stage, "load", lambda *args: loaded.extend(args))
    spec: Any = SimpleNamespace(
        config=SimpleNamespace(parameters=SimpleNamespace(max_batch_tokens=4))
    )
    engine.load(spec)
    assert loaded[0] is spec
    assert (loaded[1].func, loaded[1].keywords) == (engine.TensorRtStage, {"limit": 4})


def refuses_a_limit_beyond_its_profiles(folder: Path, patch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, patch, bounds=((1, 2, 4), (5, 8, 16)))
    engine.TensorRtStage(bench.shard(), 16)
    with pytest.raises(LoadError, match="batches of up to 16 rows: set the parameter"):
        engine.TensorRtStage(bench.shard(), 17)


CASES: Sequence[Callable[[Path, pytest.MonkeyPatch], None]] = [
    computes,
    orders_itself_among_streams,
    captures_what_comes_again,
    keeps_so_many_captured,
    captures_nothing_if_told,
    chooses_the_first_profile_that_fits,
    hands_over_the_communicator,
    knows_every_dtype,
    refuses_what_does_not_load,
    refuses_inputs_in_cpu_memory,
    says_why_it_failed,
    refits_stripped_plans,
    allows_host_code_where_the_manifest_does,
    refuses_plans_for_other_machines,
    computes_a_stage,
    hands_on_what_is_hidden,
    runs_tensor_parallel,
    needs_gpus_and_nccl,
    needs_the_library,
    needs_a_gpu,
    loads_as_an_engine,
    refuses_a_limit_beyond_its_profiles,
]


@pytest.mark.parametrize("case", CASES)
def test_runner(
    case: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case(tmp_path, monkeypatch)


def test_every_line_is_checked(tmp_path: Path) -> None:
    """A call to TensorRT in a line that no case runs would be checked by nobody."""
    assert lines.unreached_by(CASES, tmp_path, tensorrt_plan, tensorrt_graph, engine) == []


def test_contexts_end_before_their_communicator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Stage.close` drops what computes and then leaves the group: nothing else may hold it."""
    bench = Bench(tmp_path, monkeypatch)
    ends: list[str] = []
    created = bench.fake.make

    def make(kind: Any, *args: Any) -> Any:
        made = created(kind, *args)
        if kind.__name__ == "IExecutionContext":
            type(made).__del__ = lambda _: ends.append("context")  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr(bench.fake, "make", make)
    graph = bench.graph()
    graph(rows(1))
    del graph
    assert ends == ["context"]
