"""What a cross-encoder's or a classifier's folder may say, and what is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto import image_processing_auto, modeling_auto

from build_scripts import checkpoint_images, classes
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.cross_encoder_folder import MODEL, MODULES, TRANSFORMER
from build_scripts.errors import BuildError
from python_mp.sharding.families.task import Kind
from tests.support.checkpoints import CONFIG, write_json

SIGMOID, GELU = "torch.nn.modules.activation.Sigmoid", "torch.nn.GELU"
MODULE = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
DENSE = {**MODULE, "idx": 1, "type": "sentence_transformers.models.Dense"}
ONE = {MODULES: [MODULE]}
Files = Mapping[str, Any]
ACTIVATIONS: list[tuple[Files, str]] = [
    ({}, "sigmoid"),
    ({"config.json": {"sentence_transformers": {"activation_fn": SIGMOID}}}, "sigmoid"),
    ({"config.json": {"sbert_ce_default_activation_function": "torch.nn.Identity"}}, "identity"),
    ({**ONE, MODEL: {"activation_fn": "torch.nn.Identity"}}, "identity"),
    ({MODEL: {"activation_fn": "torch.nn.Identity"}}, "sigmoid"),  # which is not read
]
REFUSED: list[tuple[Files, str]] = [
    ({"config.json": {"architectures": ["Qwen3ForCausalLM"]}}, "answer yes or no, as Qwen3-Rer"),
    (
        {"config.json": {"id2label": {"0": "a", "1": "b"}}},
        "2 labels; rerank needs one: take the task classify",
    ),
    ({"config.json": {"sentence_transformers": {"activation_fn": GELU}}}, "is 'torch.nn.GELU'"),
    (
        {**ONE, MODEL: {"activation_fn": "mine.Sigmoid"}},
        "activation_fn is 'mine.Sigmoid'; there are",
    ),
    ({**ONE, MODEL: {"model_type": "SentenceTransformer"}}, "there is only 'CrossEncoder'"),
    ({**ONE, MODEL: {"default_prompt_name": "query"}}, "default_prompt_name is 'query'"),
    ({**ONE, TRANSFORMER: {"max_seq_length": 0}}, "must be a whole number above 0"),
    ({**ONE, TRANSFORMER: {"pooling": "cls"}}, "pooling is 'cls', which is not done here"),
    ({MODULES: [MODULE, DENSE]}, "chains Transformer, Dense; of a CrossEncoder"),
]


def cross_encoder(path: Path, files: Files, task: Kind = "rerank", **more: Any) -> Checkpoint:
    said = {"id2label": {"0": "LABEL_0"}, **more, **files.get("config.json", {})}
    for name, value in {**files, "config.json": {**CONFIG, **said}}.items():
        write_json(path / name, value)
    return Checkpoint(path, task)


@pytest.mark.parametrize(("files", "activation"), ACTIVATIONS)
def test_scores_come_of_what_the_folder_says(tmp_path: Path, files: Files, activation: str) -> None:
    found = cross_encoder(tmp_path, files)
    assert found.cross_encoder is not None
    assert found.cross_encoder.activation == activation


TWO = {"id2label": {"0": "a", "1": "b"}}
SEVERAL: list[tuple[Files, str | None]] = [
    ({}, None),
    ({MODULES: [MODULE]}, None),
    ({**ONE, MODEL: {"model_type": "CrossEncoder"}}, "identity"),
    ({**ONE, MODEL: {"model_type": "CrossEncoder", "activation_fn": SIGMOID}}, "sigmoid"),
    ({"config.json": {"sentence_transformers": {"activation_fn": SIGMOID}}}, "sigmoid"),
]


@pytest.mark.parametrize(("files", "activation"), SEVERAL)
def test_classifiers_are_cross_encoders_where_they_say_so(
    tmp_path: Path, files: Files, activation: str | None
) -> None:
    found = cross_encoder(tmp_path, files, task="classify", **TWO).cross_encoder
    assert (found and found.activation) == activation


@pytest.mark.parametrize(("files", "sentence"), REFUSED)
def test_other_cross_encoders_are_refused(tmp_path: Path, files: Files, sentence: str) -> None:
    with pytest.raises(BuildError, match=re.escape(sentence)):
        cross_encoder(tmp_path, files)


def test_every_class_has_a_label(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {**CONFIG, "id2label": {"0": "a", "2": "b"}})
    with pytest.raises(BuildError, match="id2label must name the classes 0, 1, 2"):
        classes.of(Checkpoint(tmp_path, "classify"))


REFUSED_PROCESSORS = {
    *("DonutImageProcessor", "EfficientNetImageProcessor", "ImageGPTImageProcessor"),
    *("LevitImageProcessor", "MobileViTImageProcessor", "PPLCNetImageProcessor"),
    *("PerceiverImageProcessor", "Siglip2ImageProcessor"),
    *("TextNetImageProcessor", "TimmWrapperImageProcessor"),
}
"""Which do more than to resize, crop, scale and normalise."""


def test_image_processors_make_transformers_pixels_or_are_refused(tmp_path: Path) -> None:
    """Each that transformers has for a model with classes, with its defaults."""
    known = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES
    kinds = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    names = {next(iter(dict(known[kind]).values())) for kind in kinds if kind in known}
    names = {name.removesuffix("Pil") for name in names}
    write_json(tmp_path / "config.json", CONFIG)
    refused = set()
    for name in names:
        (tmp_path / checkpoint_images.FILE).write_text(json.dumps({"image_processor_type": name}))
        try:
            checkpoint_images.load(Checkpoint(tmp_path, "classify"))  # which compares
        except BuildError:
            refused.add(name)
    assert refused == REFUSED_PROCESSORS
    assert len(names - refused) > 10
