"""TensorRT for real: plans are built, loaded and run, where the library and GPUs are.

Everything up to this is checked without them: see tests/unit/test_tensorrt_*.py.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from onnx import ModelProto, numpy_helper
from rich.progress import Progress

from build_scripts.recipe import TensorRt
from build_scripts.tensorrt import plan as plans
from build_scripts.tensorrt.profiles import profiles
from python_mp.model.errors import RequestFailed
from python_mp.rank.engines.tensorrt import plan_path
from python_mp.rank.engines.tensorrt_graph import TensorRtGraph
from python_mp.rank.engines.tensorrt_plan import Plan, communicator

GPUS = torch.cuda.device_count()
WIDTH, INNER = 64, 128
SIZES = (1, 8, 64)

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("tensorrt") is None, reason="TensorRT is not installed"),
    pytest.mark.skipif(not GPUS, reason="there is no GPU"),
]


def parameters() -> Mapping[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    shapes = {"up": (WIDTH, INNER), "down": (INNER, WIDTH)}
    return {n: (random.standard_normal(s) / 8).astype(np.float32) for n, s in shapes.items()}


BLOCK = """
<ir_version: 10, opset_import: ["": 20, "python_mp": 1]>
block ({kind}[rows, {width}] x) => ({kind}[rows, {width}] y) <{kind}[rows, {width}] part> {{
    a = MatMul (x, up)
    b = Relu (a)
    part = MatMul (b, down)
    sum = {summed}
    y = Add (sum, x)
}}
"""
SUMMED = """python_mp.DistCollective <collective_operation = "all_reduce", reduce_op = "sum",
    root = -1, group_size = 0, nb_rank = {ranks}> (part)"""


def block(rank: int = 0, ranks: int = 1, dtype: Any = np.float32) -> ModelProto:
    """y = x + relu(x up) down, the inner dimension split among the ranks."""
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    summed = SUMMED.format(ranks=ranks) if ranks > 1 else "Identity (part)"
    model = onnx.parser.parse_model(BLOCK.format(kind=kind, width=WIDTH, summed=summed))
    inner, weights = slice(rank * INNER // ranks, (rank + 1) * INNER // ranks), parameters()
    for name, mine in (("up", weights["up"][:, inner]), ("down", weights["down"][inner])):
        model.graph.initializer.append(numpy_helper.from_array(mine.astype(dtype), name))
    return model


def expected(x: torch.Tensor) -> torch.Tensor:
    up, down = (torch.from_numpy(w).double().to(x.device) for w in parameters().values())
    return x + torch.relu(x.double() @ up) @ down


def built(
    folder: Path, rank: int = 0, ranks: int = 1, dtype: Any = np.float32, **more: Any
) -> Path:
    """The plan; its graph lies beside it."""
    graph, plan = folder / f"rank{rank}.onnx", plan_path(folder, rank, ranks)
    model = block(rank, ranks, dtype)
    onnx.save(model, graph)
    options = replace(TensorRt(optimization_level=1), **more)
    shapes, cache = profiles(model, SIZES), folder / "timing"
    report = plans.build(graph, plan, shapes, options, cache, Progress(disable=True))
    assert report["bytes"] == plan.stat().st_size
    assert cache.stat().st_size
    return plan


def error(graph: TensorRtGraph, rows: int, device: torch.device, seed: int = 0) -> float:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=random).to(device)
    return (graph({"x": x})["y"].double() - expected(x)).abs().max().item()


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-4), (np.float16, 2e-2)])
def test_computes(dtype: Any, bound: float, tmp_path: Path) -> None:
    """Also when captured: the second run of a shape captures, the third replays."""
    device = torch.device("cuda:0")
    graph = TensorRtGraph(Plan(built(tmp_path, dtype=dtype)), device)
    for seed in range(3):
        for rows in (1, 7, 64):
            assert error(graph, rows, device, seed) < bound
    with pytest.raises(RequestFailed, match=r"x \[65, 64\]"):
        error(graph, 65, device)


@pytest.mark.parametrize(
    "options",
    [
        {"version_compatible": True, "workspace_gib": 1.0},
        {"hardware_compatibility": "ampere_plus", "refit": True},
        {"strip_plan": True},
    ],
)
def test_options(options: dict[str, Any], tmp_path: Path) -> None:
    device = torch.device("cuda:0")
    file = built(tmp_path, **options)
    host_code = bool(options.get("version_compatible"))
    plan = Plan(file, weights=tmp_path / "rank0.onnx", host_code=host_code)
    assert error(TensorRtGraph(plan, device), 5, device) < 1e-4


@pytest.mark.skipif(GPUS < 2, reason=f"needs 2 GPUs, there are {GPUS}")
def test_tensor_parallel(tmp_path: Path) -> None:
    """Two ranks, whose sums are inside the plans."""
    for rank in range(2):
        built(tmp_path, rank, 2)
    mp.spawn(tensor_rank, (tmp_path,), nprocs=2)


def tensor_rank(rank: int, folder: Path) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    store = f"file://{folder}/store"
    dist.init_process_group("nccl", store, rank=rank, world_size=2, device_id=device)
    group = dist.new_group([0, 1])
    plan = Plan(plan_path(folder, rank, 2))
    graph = TensorRtGraph(plan, device, communicator(group, device), cuda_graphs=0)
    for seed in range(3):
        assert error(graph, 9, device, seed) < 1e-4
    del graph
    dist.destroy_process_group()
