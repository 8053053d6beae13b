"""recipe.toml of an ensemble, as text with comments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from build_scripts.new import chain
from build_scripts.new.chain import Step, Takes
from build_scripts.new.pbtxt_parts import Tuning

DTYPES = "float32, bfloat16, float16, int8, int8_dynamic, fp8"
VECTORS = """\
# The gate: against the float32 reference, over the vectors of the samples.
[steps.{encoder}.accuracy]
samples = 200
float32 = {{ cosine_min = 0.999999 }}
bfloat16 = {{ cosine_min = 0.99, cosine_mean = 0.999 }}
float16 = {{ cosine_min = 0.999, cosine_mean = 0.9999 }}
int8 = {{ cosine_min = 0.95, cosine_mean = 0.98 }}
int8_dynamic = {{ cosine_min = 0.95, cosine_mean = 0.98 }}
fp8 = {{ cosine_min = 0.95, cosine_mean = 0.99 }}
"""
CLASSES = """\
# The gate: against the float32 reference, over the logits of the samples.
[steps.{encoder}.accuracy]
samples = 64
float32 = {{ max_error = 1e-3 }}
bfloat16 = {{ top1_agreement_min = 0.95 }}
float16 = {{ top1_agreement_min = 0.98 }}
int8 = {{ top1_agreement_min = 0.9 }}
int8_dynamic = {{ top1_agreement_min = 0.9 }}
fp8 = {{ top1_agreement_min = 0.9 }}
"""
ONE_CLASS = """\
# The gate: against the float32 reference, over the scores of the samples.
[steps.{encoder}.accuracy]
samples = 64
float32 = {{ max_error = 1e-3 }}
bfloat16 = {{ mean_error = 0.1 }}
float16 = {{ mean_error = 0.02 }}
int8 = {{ mean_error = 0.2 }}
int8_dynamic = {{ mean_error = 0.2 }}
fp8 = {{ mean_error = 0.2 }}
"""
CONTINUATIONS = """\
# The gate: 16 tokens that follow each sample, the likeliest ones, against the float32 reference:
# the share that are the same (but for ties), and the error of their logprobs.
[steps.{encoder}.accuracy]
samples = 8
float32 = {{ top1_agreement_min = 1.0, max_error = 1e-3 }}
bfloat16 = {{ top1_agreement_min = 0.8, mean_error = 0.1 }}
float16 = {{ top1_agreement_min = 0.95, mean_error = 0.01 }}
"""
GATES = {
    "embed": VECTORS,
    "rerank": ONE_CLASS,
    "classify": CLASSES,
    "tokens": CLASSES,
    "generate": CONTINUATIONS,
}
VARIANTS = {False: ("onnxruntime", "int8_dynamic"), True: ("torch", "bfloat16")}
"""What one would try next where float32 is too slow or too large: on CPUs, on GPUs."""


def text(
    name: str,
    source: str,
    steps: Sequence[Step],
    kind: str,
    takes: Takes,
    sizes: Sequence[int],
    keep_float: Sequence[str],
    on_gpu: bool,
    tuning: Tuning,
) -> str:
    """The recipe that makes all steps of the ensemble `name` of one source.

    Args:
        sizes: of a batch, in tokens or images: smallest, usual, largest.
        keep_float: patterns of layers that int8 leaves alone.
    """
    (ranked,) = (f"{name}_{each.job}" for each in steps if each.job in chain.RANKED)
    generates = kind == "generate"
    lines = [*_lines(name, source, steps, tuning), *_shapes(ranked, takes, sizes)]
    calibration = [] if generates else _calibration(ranked, keep_float)
    gate = GATES[kind].format(encoder=ranked)
    variant = _variant(ranked, *VARIANTS[on_gpu or generates])
    return "\n".join([*lines, *calibration, gate, *variant]) + "\n"


def _lines(name: str, source: str, steps: Sequence[Step], tuning: Tuning) -> Iterator[str]:
    yield "#:schema ../../docs/recipe.schema.json"
    yield f"# How `python -m build_scripts.build {name}` makes what is served here:"
    yield "# all of one checkpoint."
    yield f"source = {json.dumps(source)} # package:NAME, a folder, or hub:OWNER/NAME@COMMIT"
    for step in steps:
        yield from ("", f"[steps.{name}_{step.job}]")
        if step.job not in chain.RANKED:
            yield f'family = "{step.job}"'
            continue
        yield 'family = "transformers"'
        if step.job == chain.ENCODER:
            yield from engine(tuning)
        else:
            yield f'dtype = "{tuning.dtype}" # float32, bfloat16, float16'


def engine(tuning: Tuning) -> Iterator[str]:
    """The lines to change."""
    yield f'engine = "{tuning.engine}" # torch, aot_inductor, onnxruntime, tensorrt'
    yield f'dtype = "{tuning.dtype}" # {DTYPES}'


def _shapes(ranked: str, takes: Takes, sizes: Sequence[int]) -> Iterator[str]:
    axis, what = ("tokens", "a packed batch") if takes == "text" else ("rows", "a batch")
    yield from ("", f"[steps.{ranked}.shapes] # of {what}: smallest, usual, largest")
    yield from (f"{axis} = {list(sizes)}", "")


def _calibration(ranked: str, keep_float: Sequence[str]) -> Iterator[str]:
    yield f"[steps.{ranked}.calibration] # of int8: what these get has outliers"
    yield from ("samples = 64", f"keep_float = {json.dumps(keep_float)}", "")


def _variant(ranked: str, engine: str, dtype: str) -> Iterator[str]:
    yield "# Built and verified by `make build` too, so that changing the lines above is quick."
    yield from (f"[[steps.{ranked}.variants]]", f'engine = "{engine}"', f'dtype = "{dtype}"')
