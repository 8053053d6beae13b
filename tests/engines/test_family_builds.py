"""Hugging Face's families through the real build: every engine, split, verified by its own gate."""

from pathlib import Path

import pytest

from tests.support.campaigns import some
from tests.support.families import FAMILIES
from tests.support.family_builds import Variant, build

pytestmark = pytest.mark.timeout(600)
# Each engine with each way to split, and what graphs have beside plain attention: a softcap and
# windows over grouped queries, rectangles with a bias, images.
PAIRWISE = [
    Variant("gemma2", "onnxruntime", tp=2),
    Variant("siglip", "onnxruntime", tp=1, pp=2),
    Variant("mpnet", "onnxruntime", tp=1, dtype="int8_dynamic"),
    Variant("roformer", "torch", tp=2, pp=2),
]
ALL = [
    Variant("gemma2", "onnxruntime", tp=2, pp=2),
    Variant("mpnet", "onnxruntime", tp=2, dtype="int8_dynamic"),
    Variant("distilbert", "aot_inductor", dtype="bfloat16"),
    *(each for each in (Variant(name, "onnxruntime") for name in FAMILIES) if each not in PAIRWISE),
    *(Variant(name, "aot_inductor") for name in FAMILIES),
    Variant("deberta_v2", "onnxruntime", tp=3),
    Variant("t5", "aot_inductor", dtype="bfloat16"),
    *(Variant(name, "aot_inductor", dtype="float16") for name in ("bert", "gemma3")),
    *(Variant(name, "torch", tp=1) for name in ("convbert", "convnext", "falcon")),
    *(Variant(name, "torch", tp=1, pp=2) for name in ("mixtral", "gpt_oss")),
    *(Variant(name, "onnxruntime") for name in ("albert", "olmo2", "phi3")),
    *(Variant(name, "onnxruntime", tp=1, pp=3) for name in ("t5", "deberta_v2", "dinov2")),
]


@pytest.mark.parametrize(
    "variant",
    [*PAIRWISE, *(pytest.param(each, marks=pytest.mark.campaign) for each in some(ALL, 20))],
    ids=str,
)
def test_is_as_transformers_itself(variant: Variant, tmp_path: Path) -> None:
    result = build(variant, tmp_path)
    assert (result.status, result.error) == ("verified", "")
