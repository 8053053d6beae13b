"""Hugging Face's modules, packed and split, compute what transformers computes for one text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from python_mp.model.errors import InvalidInput
from python_mp.sharding.families.task import Kind
from python_mp.sharding.families.transformers import check
from python_mp.sharding.packed import Packed
from tests.support.families import FAMILIES, HEADS, LENGTHS, asked
from tests.support.in_process import served
from tests.support.tiny_models import tiny


@pytest.mark.parametrize("name", FAMILIES)
def test_as_transformers_itself(name: str) -> None:
    """In one piece, split where it does not divide, in stages, and both."""
    family = FAMILIES[name]
    model = family.make()
    inputs, wanted = asked(family, model)
    for tensor_parallel, stages in ((1, 1), (2, 1), (3, 1), (1, 2), (2, 3)):
        found = served(model, inputs, tensor_parallel, stages)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_in_16_bits(name: str) -> None:
    """Means of texts or images, as embeddings are, against float32."""
    family = FAMILIES[name]
    model = family.make()
    inputs, wanted = asked(family, model)
    for dtype, bound in ((torch.bfloat16, 0.999), (torch.float16, 0.99999)):
        found = served(model, inputs, 2, 2, dtype=dtype)
        assert found.dtype == dtype
        assert torch.cosine_similarity(means(found), means(wanted), dim=-1).min() >= bound


@pytest.mark.parametrize("name", ["bert", "mpnet", "llama"])
def test_an_empty_text_is_refused_alone(name: str) -> None:
    """Before any engine computes, packed or in rectangles."""
    config = FAMILIES[name].make().config
    ids, ends = np.array([5, 6, 7, 8], np.int32), np.array([0, 3, 3, 4], np.int32)
    batch = Packed({"INPUT_IDS": ids, "cu_seqlens": ends}, torch.device("cpu"))
    with pytest.raises(InvalidInput, match="a sequence is empty; it needs a token") as error:
        check(config, batch)
    assert error.value.sequences == (1,)


LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 6,
    "long_factor": [4.0] * 6,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 16}),
        ("esm", {}),
        ("roberta", {}),
    ],
)
def test_what_depends_on_a_whole_text(name: str, more: dict[str, Any]) -> None:
    """Longer ones turn otherwise; tokens of padding or masks are counted, wherever they stand."""
    family = tiny(name)
    family = replace(family, values={**family.values, **more})
    model = family.make()
    inputs, wanted = asked(family, model, lowest=0)
    found = served(model, inputs, 2, 2)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0.0)


def test_sinks_of_a_whole_model() -> None:
    """As far from zero as trained ones, so that what passes them over would show."""
    family = tiny("gpt_oss")
    model = family.make()
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.sinks.normal_(1, 2)
    inputs, wanted = asked(family, model)
    for stages in (1, 2):
        torch.testing.assert_close(served(model, inputs, 1, stages), wanted, atol=2e-5, rtol=0.0)
    for layer in model.layers:
        layer.self_attn.sinks.data.fill_(-50)
    assert (served(model, inputs, 1, 1) - wanted).abs().max() > 1e-2


def means(hidden: torch.Tensor) -> torch.Tensor:
    """[texts or images, hidden]"""
    each = hidden.float() if hidden.dim() == 3 else hidden.float().split(list(LENGTHS))
    return torch.stack([rows.mean(0) for rows in each])


@pytest.mark.parametrize(("task", "name"), [(t, n) for t, names in HEADS.items() for n in names])
def test_classes_as_transformers_itself(task: Kind, name: str) -> None:
    family = FAMILIES[name].with_head(task)
    model = family.make()
    inputs, wanted = asked(family, model)
    for tensor_parallel, stages in ((1, 1), (2, 2)):
        found = served(model, inputs, tensor_parallel, stages, task)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0.0)
