"""Stage `quantise`: float32 graphs to graphs of lower precision.

    onnxruntime int8           by ONNX Runtime's static quantisation, calibrated
    onnxruntime int8_dynamic   by its dynamic one, which needs no samples
    tensorrt                   see build_scripts/tensorrt/precision.py

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
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.shards import add_code
from python_mp.machine.temporary import temporary_folder

if TYPE_CHECKING:
    from onnx import ModelProto

    from build_scripts.lockstep import Feed

NEEDS = ("fetch", "shards", "export")
TOOLS = (
    "numpy",
    "nvidia-modelopt",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "pillow",
    "sentencepiece",
    "tokenizers",
    "torch",
)


def applies(job: Job) -> bool:
    return job.recipe.engine in ("onnxruntime", "tensorrt") and job.recipe.dtype != "float32"


def inputs(job: Job) -> dict[str, object]:
    return {
        "engine": job.recipe.engine,
        "dtype": job.recipe.dtype,
        "calibration": job.recipe.calibration.as_json(),
        "samples": job.samples,
    }


def run(job: Job, out: Path, progress: Progress) -> None:
    """Writes `rankR.onnx` and its weights for every rank."""
    files = [job.output("export") / f"rank{rank}.onnx" for rank in range(job.world_size)]
    check_kept(job, files)
    if job.recipe.engine == "tensorrt":
        from build_scripts.tensorrt import precision

        precision.run(job, out, progress)
        return
    from build_scripts import onnx_file
    from build_scripts.lockstep import Lockstep, calibration
    from python_mp.rank.engines.onnx_graph import join

    folder, is_static = job.output("export"), job.recipe.dtype == "int8"
    ranks = Lockstep(files, job.layout.tensor_parallel_size)
    feeds = defaultdict[tuple[int, int], list["Feed"]](list)
    for steps in calibration(job, ranks, progress) if is_static else ():
        for step in steps:
            feeds[step.rank, step.index].append(step.feed)
    task = progress.add_task(f"{job.name}: quantise", total=sum(map(len, ranks.segments)))
    for rank, file in enumerate(files):
        done = []
        for index, segment in enumerate(ranks.segments[rank]):
            model = onnx_file.with_weights(segment.model, folder)
            layers = _layers(model, job.recipe.calibration.keep_float)
            given = feeds[rank, index] if is_static else None
            done.append(replace(segment, model=_int8(model, layers, given)))
            progress.advance(task)
        onnx_file.save(join(done, ranks.models[rank]), out / file.name)
    add_code(job, out)


def check_kept(job: Job, files: list[Path]) -> None:
    """Raises BuildError where a pattern of `keep_float` is no layer's: it would keep nothing."""
    from build_scripts import onnx_file

    names = [each.name for file in files for each in onnx_file.graph(file).graph.initializer]
    for layer in job.recipe.calibration.keep_float:
        if not any(fnmatch(name, f"*{layer}.weight") for name in names):
            found = sorted(name for name in names if name.endswith(".weight"))
            raise BuildError(
                f"{job.model}: calibration.keep_float has {layer!r}, which is no layer's name; the"
                f" model's are {', '.join(found[:3])} and {max(len(found) - 3, 0)} more"
            )


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


def _int8(model: ModelProto, layers: list[str], feeds: list[Feed] | None) -> ModelProto:
    """The segment with these nodes in int8. Weights are symmetric, with a scale for each output
    column; activations have one scale, calibrated with what the segment was given, or, where that
    is None, found anew in each batch."""
    import onnx
    from onnxruntime import quantization as q

    from build_scripts import onnx_file

    if not layers:
        return model
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder, _quiet():
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx_file.save(model, before)
        how: dict[str, Any] = {
            "nodes_to_quantize": layers,
            "per_channel": True,
            "weight_type": q.QuantType.QInt8,
            "use_external_data_format": True,
            "extra_options": {"WeightSymmetric": True},
        }
        if feeds is None:
            q.quantize_dynamic(before, after, **how)
        else:
            unsigned = q.QuantType.QUInt8
            q.quantize_static(before, after, _Reader(feeds), activation_type=unsigned, **how)
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
