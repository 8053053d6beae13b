"""config.pbtxt and recipe.toml of a module of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from build_scripts.errors import BuildError
from build_scripts.new import pbtxt_parts, recipe_text
from build_scripts.new.pbtxt_parts import UNTUNED, Layout, Tensor, Tuning
from python_mp.model.config import TensorSpec
from python_mp.model.config_json import NUMPY_DTYPES
from python_mp.model.sample_dims import sample_dims

ROWS = 64
TENSOR = re.compile(r"([A-Za-z]\w*):([A-Z]+\d*):((?:-1|[1-9]\d{0,8})(?:,(?:-1|[1-9]\d{0,8}))*)")


def tensor(said: str) -> Tensor:
    """NAME:TYPE:DIMS, as in X:FP32:3,32,32. Raises BuildError for anything else."""
    found = TENSOR.fullmatch(said)
    if not found or f"TYPE_{found[2]}" not in NUMPY_DTYPES:
        types = ", ".join(name.removeprefix("TYPE_") for name in NUMPY_DTYPES)
        raise BuildError(
            f"{said!r} is no tensor: write NAME:TYPE:DIMS, as in X:FP32:3,32,32, without the batch"
            f" dimension and with -1 for what differs from request to request; types are {types}"
        )
    return Tensor(found[1], f"TYPE_{found[2]}", tuple(map(int, found[3].split(","))))


@dataclass(frozen=True)
class ModuleTemplate:
    """The model `name`."""

    name: str
    source: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    layout: Layout
    tuning: Tuning = UNTUNED

    def files(self) -> dict[str, str | bytes]:
        """By their paths in the repository."""
        return {
            f"{self.name}/config.pbtxt": pbtxt_parts.text(self._config()),
            f"{self.name}/recipe.toml": pbtxt_parts.text(self._recipe()),
        }

    def _config(self) -> Iterator[str]:
        yield from pbtxt_parts.head(self.name, "backend", "python_mp", ROWS)
        yield from pbtxt_parts.tensors("input", self.inputs)
        yield from pbtxt_parts.tensors("output", self.outputs)
        yield from ("", self.tuning.batching(), "", *pbtxt_parts.instances(self.layout))
        yield "# Rows of a batch: not more than the largest in recipe.toml."
        yield pbtxt_parts.parameter("max_batch_tokens", self.tuning.max_batch_tokens or ROWS)
        yield from self.tuning.parameters()
        if all(dim > 0 for each in self.inputs for dim in each.dims):
            yield from pbtxt_parts.warm_up(self.inputs)

    def _recipe(self) -> Iterator[str]:
        yield "#:schema ../../docs/recipe.schema.json"
        yield f"# How `python -m build_scripts.build {self.name}` makes what is served here."
        yield 'family = "module" # module.py beside this file'
        yield f"source = {json.dumps(self.source)} # the folder of its weights"
        yield from recipe_text.engine(self.tuning)
        yield from ("", "[shapes] # rows of a batch: smallest, usual, largest")
        yield from (f"rows = [1, 8, {ROWS}]", "")
        if free := [each for each in self.inputs if -1 in each.dims]:
            yield "[[shapes.samples]] # sizes for dims of -1, to try and to trace with: change them"
            yield from (f"{each.name} = {_sizes(each)}" for each in free)
            yield ""
        yield "# The gate: against the module in one piece, over samples.py or random numbers."
        yield from ("[accuracy]", "samples = 64", "float32 = { max_error = 1e-3 }")
        yield from (f"{dtype} = {{ cosine_min = 0.99 }}" for dtype in ("bfloat16", "float16"))


def _sizes(tensor: Tensor) -> list[int]:
    spec = TensorSpec(tensor.name, tensor.data_type, tensor.dims, ragged=False)
    return list(sample_dims(spec, {}))
