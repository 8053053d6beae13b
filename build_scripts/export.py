"""Stage `export`: each rank's module becomes a graph.

`rankR.exported.pt2` for AOTInductor; for everything else `rankR.onnx`, in float32, with its weights
beside it in `rankR.onnx.data` and a `DistCollective` node wherever the ranks of a stage meet.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from build_scripts import sizes
from build_scripts.errors import BuildError, refusing
from build_scripts.job import Job
from build_scripts.quiet import quiet
from build_scripts.shards import add_code

if TYPE_CHECKING:
    from torch import Tensor

    from build_scripts.trace import Traced

NEEDS = (
    "fetch",
    "shards",
)
TOOLS = ("onnx", "onnx-ir", "onnxscript", "safetensors", "torch")
OPSET = 20
NO_GRAPH = "The module is no ONNX graph ({why}); serve it with engine torch or aot_inductor."
SCOPES = "pkg.torch.onnx.name_scopes"
"""What a node of torch's exporter says of the modules that it was made in, outermost first."""


def applies(job: Job) -> bool:
    return job.recipe.engine != "torch"


def inputs(job: Job) -> dict[str, object]:
    to = f"program for {_device(job)}" if _is_aot(job) else "onnx"
    return {"to": to, "layout": asdict(job.layout), "sizes": job.recipe.shapes.samples}


def run(job: Job, out: Path, progress: Progress) -> None:
    """Writes the graphs. Raises BuildError where a module does what cannot be exported."""
    from build_scripts import ranks

    ranks.each(job, export, out, progress, "export")
    add_code(job, out)


def export(job: Job, rank: int, out: Path) -> None:
    """Writes one rank's graph into `out`."""
    import torch

    from build_scripts import fetch, ranks
    from build_scripts.stand_ins import TracedPeers
    from build_scripts.trace import trace
    from python_mp.sharding import source
    from python_mp.sharding.packed import HIDDEN_OUT

    to_onnx = not _is_aot(job)
    folder, size = job.output("shards"), job.layout.tensor_parallel_size
    model = source.read(folder)
    peers = TracedPeers(rank % size, size, to_onnx)
    shard = ranks.shard(job, rank, folder, peers, _device(job))
    with torch.no_grad(), quiet():
        hidden = _hidden(job, shard.stage)
        module, said = model.build(shard).eval(), sizes.said(job)
        longest = fetch.longest_text(job)
        traced = trace(module, job.config, hidden, to_onnx, _device(job), said, longest)
        if not shard.is_last and traced.outputs != [HIDDEN_OUT]:
            raise BuildError(
                f"A stage hands on {', '.join(traced.outputs)} by name; between graphs there is one"
                " tensor: hand on one, or serve it with engine torch."
            )
        if to_onnx:
            save_onnx(traced, out / f"rank{rank}.onnx")
        else:
            torch.export.save(
                traced.program, out / f"rank{rank}.exported.pt2", extra_files=traced.names()
            )


def _hidden(job: Job, stage: int) -> Tensor | None:
    """What the stages before hand to this one for the example batch."""
    import torch

    from build_scripts import ranks
    from build_scripts.stand_ins import TracedBatch, TracedPeers
    from build_scripts.trace import example
    from python_mp.sharding import source

    folder, size = job.output("shards"), job.layout.tensor_parallel_size
    model, hidden = source.read(folder), None
    is_ragged = job.config.has_ragged_input
    batch = TracedBatch(example(job.config, _device(job), sizes.said(job)), is_ragged=is_ragged)
    for before in range(stage):
        peers = TracedPeers(0, size, onnx=False)
        shard = ranks.shard(job, before * size, folder, peers, _device(job))
        hidden = model.build(shard).eval()(batch, hidden)
    return hidden if isinstance(hidden, torch.Tensor) else None  # The stage before is refused.


def save_onnx(traced: Traced, path: Path) -> None:
    """Writes the stage as an ONNX graph, with the names of its inputs, outputs and weights."""
    import torch

    from build_scripts import onnx_file

    with refusing(NO_GRAPH):
        program = torch.onnx.export(traced.program, opset_version=OPSET, dynamo=True, verbose=False)
    assert program is not None
    _name_weights(program.model.graph)
    _name_ends(program.model.graph, traced.inputs, traced.outputs)
    for part in (program.model, program.model.graph, *program.model.graph):
        part.metadata_props.clear()  # Stack traces, which name this machine's files.
    onnx_file.save(program.model, path)


def _name_weights(graph: Any) -> None:
    """Gives the weights of a product the name of its layer again: turned over, they lose it."""
    for node in graph:
        weights = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))[:-1]
        if weights is None or not weights.is_initializer() or not scopes:
            continue
        name = f"{scopes[-1]}.weight"
        if not weights.name.endswith(".weight") and name not in graph.initializers:
            weights.name = name


def _name_ends(graph: Any, inputs: list[str], outputs: list[str]) -> None:
    """Gives inputs and outputs their names, also where a node's output has it by chance: torch
    calls what its operator gather gives `gather`, as we call an input."""
    ends = dict(zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True))
    taken = set(ends.values())
    for node in graph:
        for value in node.outputs:
            if value.name in taken and value not in ends:
                value.name = f"{value.name}_within"
    for value, name in ends.items():
        value.name = name


def _device(job: Job) -> str:
    """Where a program is traced, and so will run; ONNX graphs run anywhere."""
    return "cuda" if _is_aot(job) and job.on_gpu else "cpu"


def _is_aot(job: Job) -> bool:
    return job.recipe.engine == "aot_inductor"


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("export"))
