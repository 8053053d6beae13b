"""config.pbtxt for Triton's own tensorrt backend, for those who would rather serve plans with that.

python -m build_scripts.tensorrt.tritonconfig GRAPH.onnx --max-batch-size 64 [--gpus 0,1]

That backend knows requests of equal shape only, and tensor parallelism in one process, but no
pipeline. It reads `model.plan`; with several GPUs `model.plan.rankN`, and wants a `model.plan` too,
which may be a link to that of rank 0.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from build_scripts.errors import BuildError
from build_scripts.tensorrt.profiles import RECTANGLES
from python_mp.rank.engines.onnx_graph import COLLECTIVE
from python_mp.sharding.packed import HIDDEN, HIDDEN_OUT

TYPES: dict[int, str] = {
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.BFLOAT16: "TYPE_BF16",
    TensorProto.INT8: "TYPE_INT8",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.BOOL: "TYPE_BOOL",
}


def config(model: ModelProto, *, max_batch_size: int, gpus: Sequence[int] = (0,)) -> str:
    """The text for rank 0's graph, one rank on each of `gpus`.

    Raises:
        BuildError: that backend cannot serve the graph.
    """
    names = {value.name for value in (*model.graph.input, *model.graph.output)}
    if names & {HIDDEN, HIDDEN_OUT, *RECTANGLES}:
        raise BuildError(
            "Triton's tensorrt backend serves neither pipelines nor sequences of unequal length:"
            " serve this model with backend python_mp."
        )
    ranks = next((_ranks(n) for n in model.graph.node if n.op_type == COLLECTIVE), 1)
    if ranks != len(gpus):
        raise BuildError(f"The graph is of {ranks} ranks: name {ranks} GPUs, not {len(gpus)}.")
    lines = ['backend: "tensorrt"', f"max_batch_size: {max_batch_size}"]
    for field, values in (("input", model.graph.input), ("output", model.graph.output)):
        lines += [f"{field} [", ",\n".join(map(_tensor, values)), "]"]
    return "\n".join([*lines, *(_one(gpus[0]) if ranks == 1 else _several(gpus)), ""])


def _tensor(value: ValueInfoProto) -> str:
    """Without its first dimension, which is the batch."""
    tensor = value.type.tensor_type
    dims = ", ".join(str(dim.dim_value or -1) for dim in tensor.shape.dim[1:])
    shape = f"dims: [ {dims} ]" if dims else "dims: [ 1 ] reshape { shape: [ ] }"
    return f'  {{ name: "{value.name}" data_type: {TYPES[tensor.elem_type]} {shape} }}'


def _ranks(collective: onnx.NodeProto) -> int:
    ranks: int = next(each.i for each in collective.attribute if each.name == "nb_rank")
    return ranks


def _one(gpu: int) -> list[str]:
    return [f"instance_group [ {{ kind: KIND_GPU count: 1 gpus: [ {gpu} ] }} ]"]


def _several(gpus: Sequence[int]) -> list[str]:
    values = {
        "enable_multi_device": "true",
        "multi_device_gpus": ",".join(map(str, gpus)),
        "multi_device_per_rank_engines": "true",
    }
    return [
        "instance_group [ { kind: KIND_MODEL count: 1 } ]",
        *(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in values.items()
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="config.pbtxt for Triton's tensorrt backend")
    parser.add_argument("graph", type=Path, help="rank 0's ONNX graph")
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--gpus", type=lambda text: [int(gpu) for gpu in text.split(",")])
    options = parser.parse_args(arguments)
    model = onnx.load(options.graph, load_external_data=False)
    try:
        text = config(model, max_batch_size=options.max_batch_size, gpus=options.gpus or (0,))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
