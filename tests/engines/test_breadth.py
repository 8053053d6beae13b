"""docs/models.md's table of transformers' models, each tried with a tiny random one of its kind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoConfig

from python_mp.model.errors import LoadError
from python_mp.sharding.families import skeleton
from tests.support.families import asked
from tests.support.in_process import served, tried
from tests.support.tiny_models import tiny

PAGE = Path(__file__).parents[2] / "docs/models.md"
ROW = re.compile(
    r"^\| (packed|rectangles|images) \| (yes|no) \| (yes|no) \| (.+) \|$", re.MULTILINE
)
_ALWAYS = """
albert bert-generation bloom camembert clip_text_model convbert convnext data2vec-text
deberta deit dinov2_with_registers ernie falcon gemma glm gpt_oss granite gte
jina_embeddings_v3 lfm2 mixtral mobilebert mt5 nanochat nomic_bert olmo2 opt phi3
roformer stablelm swin umt5 xlm xlnet
"""
ALWAYS = set(_ALWAYS.split())
"""Beside those of test_transformers.py; all others are a campaign."""


class Said(NamedTuple):
    model_type: str
    rows: str
    is_split: bool
    has_stages: bool


def table() -> list[Said]:
    return [
        Said(name, rows, split == "yes", stages == "yes")
        for rows, split, stages, names in ROW.findall(PAGE.read_text())
        for name in names.split(", ")
    ]


TABLE = table()


def test_the_table_is_there() -> None:
    assert {each.model_type for each in TABLE} >= ALWAYS


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest error; NaN where something is none."""
    return float((found.double() - wanted.double()).abs().max())


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(each, marks=() if each.model_type in ALWAYS else pytest.mark.campaign)
        for each in TABLE
    ],
    ids=lambda said: said.model_type,
)
def test_a_model_of_the_table(said: Said) -> None:
    """On as many ranks as the table allows, and refused on more."""
    assert skeleton.rows(AutoConfig.for_model(said.model_type)) == said.rows
    family = tiny(said.model_type)
    model = family.make()
    inputs, wanted = asked(family, model)
    ranks, stages = 3 if said.is_split else 1, 2 if said.has_stages else 1
    tried(model, ranks, stages)
    found = served(model, inputs, ranks, stages)
    near = 2e-5 * max(1.0, float(wanted.abs().max()) / 4)  # Tiny ones of some have large outputs.
    assert found.shape == wanted.shape
    if not off(found, wanted) <= near:  # As far as float32 rounds here: some amplify that.
        model.set_experts_implementation("eager")  # The others know no float64.
        _, exact = asked(family, model.double())
        assert off(found, exact) <= max(near, 2 * off(wanted, exact))
    for more in (2, 1) if not said.is_split else (), (1, 2) if not said.has_stages else ():
        if more:
            with pytest.raises(LoadError):
                tried(model, *more)
