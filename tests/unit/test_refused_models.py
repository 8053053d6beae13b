"""What of transformers is not served is refused by a sentence that says what would do instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from python_mp.model.errors import LoadError
from python_mp.sharding import checkpoint
from python_mp.sharding.families import heads, skeleton, transformers
from python_mp.sharding.families.task import Task
from python_mp.sharding.weights import Tensors
from tests.support.in_process import tried
from tests.support.tiny_models import tiny

ORIGINAL = "are not read: take the original checkpoint"
SAID: dict[str, tuple[dict[str, Any], str]] = {
    **{
        how: (
            {"model_type": "llama", "quantization_config": {"quant_method": how}},
            rf"quantised weights \({how}\) {ORIGINAL}",
        )
        for how in ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "mxfp4")
    },
    "compressed": ({"model_type": "llama", "compression_config": {"a": 1}}, ORIGINAL),
    "code": (
        {"model_type": "NewModel", "auto_map": {"AutoModel": "modeling.NewModel"}},
        "code beside a checkpoint is never run",
    ),
    "foreign": (
        {"model_type": "bert", "architectures": ["JinaBertModel"]},
        "the architecture JinaBertModel, which is no bert .* serve it as a module of your own",
    ),
    "clip": (
        {"model_type": "clip"},
        r"several parts \(text_config, vision_config\): save .* CLIPTextModel\.from_pretrained\(",
    ),
    "llava": ({"model_type": "llava"}, r"or LlamaModel\.|, as LlamaModel\.|CLIPVisionModel\."),
    "gemma3": ({"model_type": "gemma3"}, r"as Gemma3TextModel\.from_pretrained\(FOLDER\)"),
    "qwen2_vl": ({"model_type": "qwen2_vl"}, r"several parts \(.*text_config, vision_config\)"),
}
"""By name: a config.json, and what is said of it."""
BUILT: dict[str, tuple[dict[str, Any], int, int, str]] = {
    "mixtral": ({}, 2, 1, r"its experts \(MoE\) are not split: use one rank a stage"),
    "qwen3_moe": ({}, 2, 1, r"its experts \(MoE\) are not split: use one rank a stage"),
    "convbert": ({}, 2, 1, "it is not known how it is split: use one rank a stage"),
    "granite_swa": ({}, 2, 1, "the plan has 'local_params' .*: use one rank a stage"),
    "albert": ({}, 1, 2, "no list of layers to cut in stages; use one"),
    "gemma4_text": ({}, 1, 2, "later layers are given more than hidden states"),
    "bert": ({}, 1, 4, "pipeline_parallel_size 4 is more than the model's 3 layers"),
    "whisper": ({}, 1, 1, "takes input_features; a module of your own can"),
    "wav2vec2": ({}, 1, 1, "takes input_values; a module of your own can"),
    "siglip2_vision_model": (
        {},
        1,
        1,
        r"patches \(spatial_shapes\).* siglip in the place of siglip2",
    ),
    "dpr": ({}, 1, 1, "no hidden state for each token or patch: serve it as a module of your own"),
    "vit_mae": ({}, 1, 1, "does not compute the same for a text, or an image, alone and beside"),
    "xmod": ({"default_language": None}, 1, 1, "transformers refuses it: ValueError: Input lang"),
}
"""By model_type: more of its config, ranks of a stage, stages, and what is said at the build."""


@pytest.mark.parametrize("name", SAID)
def test_by_what_config_says(name: str, tmp_path: Path) -> None:
    config, said = SAID[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=said):
        transformers.read(tmp_path / "config.json")


@pytest.mark.parametrize("model_type", BUILT)
def test_by_what_the_build_finds(model_type: str) -> None:
    more, size, stages, said = BUILT[model_type]
    if model_type in ("whisper", "wav2vec2", "siglip2_vision_model"):
        config = AutoConfig.for_model(model_type)
        with pytest.raises(LoadError, match=said):
            skeleton.rows(config)
        return
    family = tiny(model_type)
    model = family.make()
    for name, value in more.items():
        setattr(model.config, name, value)
    with pytest.raises(LoadError, match=said):
        tried(model, size, stages)


def test_classes_of_pictures_in_patches() -> None:
    config = AutoConfig.for_model("siglip2")
    config.architectures = ["Siglip2ForImageClassification"]
    with pytest.raises(LoadError, match="take a checkpoint for one size"):
        skeleton.rows(config, "classify")


def test_classes_that_do_not_come_of_the_encoder() -> None:
    nothing = Tensors({}, torch.float32)
    with pytest.raises(LoadError, match="classes of a t5 come of a T5Model, not of the T5Encoder"):
        heads.Classes(tiny("t5").make().config, Task("classify"), nothing, torch.device("cpu"))


def test_a_plan_of_ways_that_are_not_known() -> None:
    model = tiny("llama").make()
    plan = {**model.config.base_model_tp_plan, "layers.*.mlp.up_proj": "sideways"}
    type(model.config).base_model_tp_plan, was = plan, model.config.base_model_tp_plan
    try:
        with pytest.raises(LoadError, match=r"'sideways' for layers\.\*\.mlp\.up_proj; known are"):
            tried(model, 2, 1)
        tried(model, 1, 1)
    finally:
        type(model.config).base_model_tp_plan = was


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.Q4_0.gguf", "reads the file itself"),
        ("pytorch_model.bin", "pickle can run"),
    ],
)
def test_by_its_files(file: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    with pytest.raises(LoadError, match=said):
        checkpoint.weight_files(tmp_path)
