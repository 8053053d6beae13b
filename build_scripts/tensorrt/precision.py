"""Graphs in lower precision, by NVIDIA's ModelOpt; TensorRT takes a graph's types as they are.

    float16, bfloat16   casts around what can stand it, weights converted
    int8, fp8           QuantizeLinear and DequantizeLinear where a product gains by it, with scales
                        from calibration; the rest in float16

Inputs and outputs keep their types, and so do the sums over ranks.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto
from rich.progress import Progress

from build_scripts import onnx_file, workers
from build_scripts.errors import BuildError
from build_scripts.tensorrt import dtypes
from build_scripts.tensorrt.dist_collective import put_back, set_aside
from python_mp.machine.temporary import temporary_folder
from python_mp.model.request import Array

if TYPE_CHECKING:
    from build_scripts.job import Job

CASTS = {"float16": "fp16", "bfloat16": "bf16"}
QUANTISED = ("int8", "fp8")
Feed = Mapping[str, Array]


def run(job: Job, out: Path, progress: Progress) -> None:
    """The stage's work: the exported graphs, converted, as `rankR.onnx` and `rankR.onnx.data`."""
    from build_scripts.lockstep import Lockstep, calibration

    folder, ranks = job.output("export"), range(job.world_size)
    files = [folder / f"rank{rank}.onnx" for rank in ranks]
    lockstep = Lockstep(files, job.layout.tensor_parallel_size)
    feeds: list[list[dict[str, Array]]] = [[] for _ in ranks]
    for steps in calibration(job, lockstep, progress):
        for values in feeds:
            values.append({})
        for step in steps:
            feeds[step.rank][-1].update(step.feed)
    dtype, kept = job.recipe.dtype, job.recipe.calibration.keep_float
    with workers.pool(1) as pool:
        for file, given in progress.track(
            [*zip(files, feeds, strict=True)], description=f"{job.name}: quantise"
        ):
            pool.submit(_convert_file, file, out / file.name, dtype, given, kept).result()


def _convert_file(source: Path, target: Path, dtype: str, *how: Any) -> None:
    """In the process that converts: none of it is sent from one to another."""
    onnx_file.save(convert(onnx.load(source), dtype, *how), target)


def convert(
    model: ModelProto, dtype: str, feeds: Sequence[Feed], keep_float: Sequence[str] = ()
) -> ModelProto:
    """One rank's float32 graph in `dtype`. To be called in a process of its own: ModelOpt patches
    ONNX Runtime's quantiser.

    Args:
        feeds: for each calibration batch the graph's inputs, and what its collectives returned, by
            name; more than that is ignored.
        keep_float: patterns of layers' names in the module that are not to be quantised.

    Raises:
        BuildError: ModelOpt is missing or fails, or most weights stayed in another precision.
    """
    kept = _named(model, keep_float) if dtype in QUANTISED else []
    opened, collectives = set_aside(model)
    names = [value.name for value in opened.graph.input]
    given = [{name: feed[name] for name in names} for feed in feeds]
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder, _quiet(dtype):
        source = Path(folder) / "float32.onnx"
        onnx_file.save(opened, source)
        if dtype in CASTS:
            converted = _with_casts(source, dtype, given)
        else:
            converted = _quantised(source, dtype, given, kept)
    result = put_back(converted, collectives, model)
    dtypes.require(result, dtype, kept)
    return result


def _with_casts(source: Path, dtype: str, feeds: Sequence[Feed]) -> ModelProto:
    """What overflows with the calibration data stays in float32."""
    data = source.with_name("batches")  # A single file would be split along first dimensions.
    data.mkdir()
    for number, feed in enumerate(feeds):
        np.savez(data / f"{number:06}.npz", **feed)
    autocast = _modelopt("modelopt.onnx.autocast")
    converted: ModelProto = autocast.convert_to_mixed_precision(
        str(source),
        low_precision_type=CASTS[dtype],
        keep_io_types=True,
        calibration_data=str(data),
        providers=["cpu"],
    )
    return converted


def _named(model: ModelProto, layers: Sequence[str]) -> list[str]:
    """Names of the nodes that multiply with the weights of these layers."""
    return [
        node.name
        for node in model.graph.node
        for layer in layers
        if any(fnmatch(name, f"*{layer}.weight") for name in node.input)
    ]


def _quantised(source: Path, dtype: str, feeds: Sequence[Feed], kept: Sequence[str]) -> ModelProto:
    target = source.with_name("quantised.onnx")
    _modelopt("modelopt.onnx.quantization").quantize(
        str(source),
        quantize_mode=dtype,
        calibration_data_reader=_reader(feeds),
        calibration_method="max",
        calibration_eps=["cpu"],
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in kept],
        high_precision_dtype="fp16",
        output_path=str(target),
        use_external_data_format=True,
        log_level="ERROR",
    )
    return onnx.load(target)


def _reader(feeds: Sequence[Feed]) -> Any:
    """What ModelOpt's calibrator asks for batches, whose sizes may differ."""
    base = _modelopt("onnxruntime.quantization.calibrate").CalibrationDataReader

    class Reader(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> Feed | None:
            return next(self._left, None)

        def get_first(self) -> Feed:
            return feeds[0]

        def rewind(self) -> None:
            self._left = iter(feeds)

    return Reader()


def _modelopt(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise BuildError(
            f"Engine tensorrt gets its lower precisions from NVIDIA's ModelOpt, which is not usable"
            f" here ({error}): build in NVIDIA's container, or install 'nvidia-modelopt[onnx]'."
        ) from None


@contextmanager
def _quiet(dtype: str) -> Iterator[None]:
    """ModelOpt's own words for failures are exceptions of every kind."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"ModelOpt cannot convert the graph to {dtype}: {error}") from error
    finally:
        logging.disable(before)
