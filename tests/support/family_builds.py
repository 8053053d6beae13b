"""Builds of tiny random checkpoints of Hugging Face's families, as a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from build_scripts import artifact
from build_scripts import job as jobs
from build_scripts.outcome import Result
from tests.support.families import FAMILIES
from tests.support.tiny_models import tiny

TEXT = """
  { name: "INPUT_IDS" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true },
  { name: "LENGTHS" data_type: TYPE_INT32 dims: [ 1 ] }
"""
IMAGE = '{ name: "PIXEL_VALUES" data_type: TYPE_FP32 dims: [ 3, 32, 32 ] }'
LENGTHS_PARAMETER = 'parameters { key: "lengths" value { string_value: "LENGTHS" } }'
CONFIG = """
name: "tiny"
backend: "python_mp"
max_batch_size: 8
input [ %(inputs)s ]
output [ { name: "HIDDEN_STATES" data_type: TYPE_FP32 dims: [ -1, 48 ] } ]
instance_group [
  { name: "lead" kind: KIND_CPU }%(others)s
]
parameters { key: "tensor_parallel_size" value { string_value: "%(tp)s" } }
parameters { key: "pipeline_parallel_size" value { string_value: "%(pp)s" } }
%(lengths)s
"""
OTHERS = ',\n  { name: "shard" kind: KIND_CPU count: %s passive: true }'
RECIPE = """
family = "transformers"
source = "%(source)s"
engine = "%(engine)s"
dtype = "%(dtype)s"
[shapes]
%(axis)s = [1, 32, 4096]
[accuracy]
cosine_min = %(cosine)s
"""
SAMPLES = """
import numpy as np

def samples(folder):
    random, one = np.random.default_rng(0), np.ones((1, 1), np.int32)
    %s
"""
TEXTS = """return [
        {"INPUT_IDS": random.integers(3, 99, (1, n), np.int32), "LENGTHS": one * n}
        for n in (7, 23, 1, 40, 12, 3, 30, 5)
    ], None"""
IMAGES = """return [
        {"PIXEL_VALUES": random.standard_normal((1, 3, 32, 32), np.float32)} for _ in range(5)
    ], None"""
COSINE = {"float32": 0.9999999, "bfloat16": 0.999, "float16": 0.99999, "int8_dynamic": 0.98}


@dataclass(frozen=True)
class Variant:
    """What is built of a family."""

    family: str
    engine: str
    tp: int = 2
    pp: int = 1
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.family}-{self.engine}-{self.dtype}-tp{self.tp}-pp{self.pp}"


def build(variant: Variant, folder: Path) -> Result:
    """Builds and verifies it by the gate, against transformers itself."""
    family = FAMILIES.get(variant.family) or tiny(variant.family)
    model = folder / "models" / "tiny"
    model.mkdir(parents=True)
    family.make().save_pretrained(folder / "checkpoint")
    ranks = variant.tp * variant.pp
    values = {
        **vars(variant),
        "source": folder / "checkpoint",
        "inputs": IMAGE if family.takes_images else TEXT,
        "lengths": "" if family.takes_images else LENGTHS_PARAMETER,
        "axis": "rows" if family.takes_images else "tokens",
        "others": OTHERS % (ranks - 1) if ranks > 1 else "",
        "cosine": COSINE[variant.dtype],
    }
    (model / "config.pbtxt").write_text(CONFIG % values)
    (model / "recipe.toml").write_text(RECIPE % values)
    (model / "samples.py").write_text(SAMPLES % (IMAGES if family.takes_images else TEXTS))
    job = jobs.load("tiny", model.parent, workspace=folder / "build")
    with Progress(console=Console(quiet=True)) as progress:
        return artifact.build(job, progress, publishing=False)
