"""Stage `quantise`: float32 graphs to graphs of lower precision.

    onnxruntime int8   by ONNX Runtime's static quantisation, calibrated
    tensorrt           see build_scripts/tensorrt/precision.py

A graph with collectives cannot be calibrated by itself, since its ranks must run together. So all
ranks are run here in step, segment by segment; what each segment was given calibrates it alone.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from build_scripts.job import Job
from build_scripts.shards import add_code
from python_mp.machine.temporary import temporary_folder

if TYPE_CHECKING:
    from onnx import ModelProto

    from build_scripts.lockstep import Feed

NEEDS = ("fetch", "shards", "export")
TOOLS = ("numpy", "nvidia-modelopt", "onnx", "onnxruntime", "tokenizers", "torch")


def applies(job: Job) -> bool:
    onnx_int8 = job.recipe.engine == "onnxruntime" and job.recipe.dtype == "int8"
    return onnx_int8 or (job.recipe.engine == "tensorrt" and job.recipe.dtype != "float32")


def inputs(job: Job) -> dict[str, object]:
    return {
        "engine": job.recipe.engine,
        "dtype": job.recipe.dtype,
        "calibration": job.recipe.calibration.as_json(),
        "samples": job.samples,
    }


def run(job: Job, out: Path, progress: Progress) -> None:
    """Writes `rankR.onnx` for every rank."""
    if job.recipe.engine == "tensorrt":
        from build_scripts.tensorrt import precision

        precision.run(job, out, progress)
        return
    import onnx

    from build_scripts.lockstep import Lockstep, calibration
    from python_mp.rank.engines.onnx_graph import join

    files = [job.output("export") / f"rank{rank}.onnx" for rank in range(job.world_size)]
    models = [onnx.load(file) for file in files]
    ranks = Lockstep(models, job.layout.tensor_parallel_size)
    feeds = defaultdict[tuple[int, int], list["Feed"]](list)
    for steps in calibration(job, ranks, progress):
        for step in steps:
            feeds[step.rank, step.index].append(step.feed)
    task = progress.add_task(f"{job.name}: quantise", total=len(feeds))
    for rank, (file, model) in enumerate(zip(files, models, strict=True)):
        done = []
        for index, segment in enumerate(ranks.segments[rank]):
            layers = _layers(segment.model, job.recipe.calibration.keep_float)
            done.append(replace(segment, model=_int8(segment.model, layers, feeds[rank, index])))
            progress.advance(task)
        onnx.save(join(done, model), out / file.name)
    add_code(job, out)


def _layers(model: ModelProto, keep_float: Sequence[str]) -> list[str]:
    """Names of the nodes to quantise: products with weights, but those of layers that match
    `keep_float`. Products of two activations (attention) are small, and would lose the most."""
    weights = {weight.name for weight in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and node.input[1] in weights
        and not any(fnmatch(node.input[1], f"*{layer}.weight") for layer in keep_float)
    ]


def _int8(model: ModelProto, layers: list[str], feeds: list[Feed]) -> ModelProto:
    """The segment with these nodes in int8, between QuantizeLinear and DequantizeLinear. Weights
    are symmetric, with a scale for each output column; activations have one scale."""
    import onnx
    from onnxruntime import quantization as q

    if not layers:
        return model
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder, _quiet():
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(model, before)
        q.quantize_static(
            before,
            after,
            _Reader(feeds),
            nodes_to_quantize=layers,
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            extra_options={"WeightSymmetric": True},
        )
        return onnx.load(after)


class _Reader:
    """What ONNX Runtime reads its calibration data from."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """It warns once for each segment that the model could be optimised first: it was."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("quantise"))
