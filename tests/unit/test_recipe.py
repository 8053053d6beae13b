"""Recipes: what is read, and that a mistake is named with its file, its key and what is allowed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from build_scripts import recipe
from build_scripts.errors import BuildError
from build_scripts.job import REPOSITORY, models
from build_scripts.recipe import DTYPES, Engine, Layout, Variant, load

GOOD = """
family = "module"
source = "make:build_scripts.ranker"
[layout]
tensor_parallel_size = 2
[shapes]
rows = [1, 4, 8]
[accuracy]
max_error = 1
cosine_min = 0.9
[accuracy.int8]
cosine_min = 0.5
[[variants]]
engine = "onnxruntime"
[[variants]]
engine = "onnxruntime"
dtype = "int8"
pipeline_parallel_size = 3
"""


def read(folder: Path, text: str, **overrides: Any) -> recipe.Recipe:
    (folder / "recipe.toml").write_text(text)
    return load(folder, overrides)


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD)
    assert (made.engine, made.dtype, made.keep) == ("torch", "float32", 2)
    assert made.layout == Layout(2, 1, 1)
    assert (made.shapes.axis, made.shapes.sizes) == ("rows", (1, 4, 8))
    assert made.calibration.samples == 64


def test_bounds_of_a_dtype_come_before_those_for_all(tmp_path: Path) -> None:
    accuracy = read(tmp_path, GOOD).accuracy
    assert accuracy.bounds("float32").given() == {"cosine_min": 0.9, "max_error": 1}
    assert accuracy.bounds("int8").given() == {"cosine_min": 0.5, "max_error": 1}


def test_variants_differ_in_what_they_say(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD)
    float32, int8 = (made.variant(each) for each in made.variants)
    assert float32 == replace(made, engine="onnxruntime", variants=())
    assert (int8.dtype, int8.layout) == ("int8", Layout(2, 3, 1))
    assert made.variant(Variant()) == replace(made, variants=())


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD, engine="onnxruntime", layout={"replicas": 3})
    assert made.engine == "onnxruntime"
    assert made.layout == Layout(2, 1, 3)


def test_what_does_not_change_the_artifact_is_not_in_its_recipe(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD)
    other = read(tmp_path, GOOD.replace("[layout]", "keep = 9\n[layout]\nreplicas = 4"))
    assert made.as_json() == other.as_json()
    assert json.loads(json.dumps(made.as_json()))["accuracy"]["int8"]["cosine_min"] == 0.5


MISTAKES = {
    "misspelt": ("keep = 1\nengin = 'torch'", "unknown key 'engin'; did you mean 'engine'?"),
    "unknown": ("zzz = 1", "unknown key 'zzz'; known: family, source, engine"),
    "misspelt_value": ("engine = 'onnxruntim'", "engine is 'onnxruntim'; it must be one of torch,"),
    "value_hint": ("dtype = 'floatt32'", "did you mean 'float32'?"),
    "type": ("keep = '2'", "keep is '2'; it must be a whole number from 1 to"),
    "zero": ("keep = 0", "keep is 0; it must be a whole number from 1"),
    "no_integer": ("keep = true", "keep is True; it must be a whole number"),
    "no_table": ("calibration = 3", "calibration is 3; it must be a table"),
    "inner": ("calibration = { sample = 3 }", "unknown key 'calibration.sample'; did you mean"),
    "share": ("calibration = {}\n[accuracy.fp8]\ncosine_min = 2", "a number from 0 to 1"),
    "no_dtype": ("engine = 'aot_inductor'\ndtype = 'int8'", "aot_inductor has no dtype int8; it"),
    "option": ("[tensorrt]\nrefit = 1", "tensorrt.refit is 1; it must be true or false"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, name: str) -> None:
    line, said = MISTAKES[name]
    text = GOOD.replace("[layout]", f"{line}\n[layout]", 1)
    with pytest.raises(BuildError) as raised:
        read(tmp_path, text)
    assert said in str(raised.value)
    assert str(tmp_path / "recipe.toml") in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('family = "module"', "", "family is missing"),
        ("rows = [1, 4, 8]", "", "shapes is missing"),
        ("rows = [1, 4, 8]", "rows = [1, 8, 4]", "shapes.rows is [1, 8, 4]; it must be [min,"),
        ("rows = [1, 4, 8]", "rows = [1, 8]", "shapes.rows is [1, 8]; it must be a list of 3"),
        ("rows = [1, 4, 8]", "rows = [0, 4, 8]", "shapes.rows[0] is 0; it must be a whole"),
        ("rows = [", "tokens = [1, 2, 3]\nrows = [", "tokens and rows are both there"),
        ('dtype = "int8"', 'dtype = "fp8"', "onnxruntime has no dtype fp8; it has float32, int8"),
        ('"onnxruntime"', '"onnx"', "variants[0].engine is 'onnx'"),
        ("max_error = 1\ncosine_min = 0.9", "", "accuracy.float32 sets no bound"),
        ("[layout]", "[layout", "is not valid TOML"),
    ],
)
def test_what_does_not_make_sense_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(BuildError) as raised:
        read(tmp_path, GOOD.replace(old, new))
    assert said in str(raised.value)


def test_a_tokenizer_has_nothing_but_a_source(tmp_path: Path) -> None:
    text = 'family = "tokenizer"\nsource = "package:p"\nkeep = 3\n'
    assert read(tmp_path, text).keep == 3
    with pytest.raises(BuildError, match="a tokenizer has family, source and keep; not engine"):
        read(tmp_path, text + 'engine = "torch"')


def test_no_recipe_is_said(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"recipe\.toml is missing"):
        load(tmp_path)


def test_every_engine_has_its_dtypes() -> None:
    assert DTYPES.keys() == set(get_args(Engine))


@pytest.mark.parametrize("model", models())
def test_the_recipes_of_the_repository_are_good(model: str) -> None:
    made = load(REPOSITORY / model)
    assert made.source.startswith(("package:", "make:"))
