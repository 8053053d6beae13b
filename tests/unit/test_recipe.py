"""Recipes: what is read, and that a mistake is named with its file, its key and what is allowed."""

import json
import tomllib
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from build_scripts import job, recipe, recipe_file
from build_scripts.errors import BuildError
from build_scripts.recipe import Dtype, Engine, Variant
from build_scripts.recipe_file import load
from python_mp.model.parameters import DTYPES, ENGINES

GOOD = """
family = "module"
source = "make:weights.py"
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
ENSEMBLE = """
source = "package:p"
[steps.tokenizer]
family = "tokenizer"
[steps.encoder]
family = "transformers"
shapes = { tokens = [1, 4, 8] }
accuracy = { max_error = 1 }
"""


def read(folder: Path, text: str, model: str = "m", **overrides: Any) -> recipe.Recipe:
    (folder / "recipe.toml").write_text(text)
    return load(folder / "recipe.toml", model, overrides)


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD)
    assert (made.engine, made.dtype, made.keep) == ("torch", "float32", 2)
    assert (made.shapes.axis, made.shapes.sizes) == ("rows", (1, 4, 8))
    assert made.calibration.samples == 64


def test_bounds_of_a_dtype_come_before_those_for_all(tmp_path: Path) -> None:
    accuracy = read(tmp_path, GOOD).accuracy
    assert accuracy.bounds("float32").given() == {"cosine_min": 0.9, "max_error": 1}
    assert accuracy.bounds("int8").given() == {"cosine_min": 0.5, "max_error": 1}


def test_variants_differ_in_what_they_say(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD)
    float32, int8 = (made.variant(each) for each in made.variants)
    assert float32 == msgspec.structs.replace(made, engine="onnxruntime", variants=())
    assert int8.dtype == "int8"
    assert [each.sizes for each in made.variants] == [{}, {"pipeline_parallel_size": 3}]
    assert made.variant(Variant()) == msgspec.structs.replace(made, variants=())


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD, engine="onnxruntime").engine == "onnxruntime"


def test_a_recipe_of_an_ensemble_has_one_source(tmp_path: Path) -> None:
    tokenizer, encoder = (read(tmp_path, ENSEMBLE, model) for model in ("tokenizer", "encoder"))
    assert (tokenizer.source, encoder.source) == ("package:p", "package:p")
    assert encoder.shapes.tokens == (1, 4, 8)
    assert recipe_file.models(tmp_path / "recipe.toml") == ["encoder", "tokenizer"]
    other = read(tmp_path, ENSEMBLE, "tokenizer", source="package:q", engine="onnxruntime")
    assert (other.source, other.engine) == ("package:q", "torch")  # which it has not


def test_what_does_not_change_the_artifact_is_not_in_its_recipe(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD)
    other = read(tmp_path, GOOD.replace("[shapes]", "keep = 9\n[shapes]"))
    assert made.as_json() == other.as_json()
    assert json.loads(json.dumps(made.as_json())) == made.as_json()
    assert made.as_json()["accuracy"]["int8"]["cosine_min"] == 0.5


ROWS, SOURCE = "rows = [1, 4, 8]", 'source = "package:p"'


def test_a_mistake_is_named(tmp_path: Path) -> None:
    for text, old, new, said in (
        (GOOD, "[sh", "engin = 't'\n[sh", "unknown field `engin`; did you mean 'engine'?"),
        (GOOD, "[sh", "engine = 'torc'\n[sh", "engine: Invalid enum value 'torc'; did"),
        (GOOD, "[sh", "keep = '2'\n[sh", "keep: Expected `int`, got `str`"),
        (GOOD, "[sh", "calibration = { sample = 3 }\n[sh", "calibration: Object contains unknown"),
        (GOOD, "cosine_min = 0.5", "cosine_min = 2", "accuracy.int8.cosine_min: Expected"),
        (GOOD, "[sh", "engine = 'aot_inductor'\ndtype = 'int8'\n[sh", "has no dtype int8; it"),
        (GOOD, "[sh", "dtype = 'int8'\n[sh", "float32, bfloat16, float16. Engines with it:"),
        (GOOD, "[sh", "[layout]\n[sh", "is of 0.1: [layout] stands in config.pbtxt only now"),
        (GOOD, 'family = "module"', "", "missing required field `family`"),
        (GOOD, ROWS, "", "shapes is missing"),
        (GOOD, ROWS, "rows = [1, 8, 4]", "shapes: rows is [1, 8, 4]; it must be [min,"),
        (GOOD, "rows = [", "tokens = [1, 2, 3]\nrows = [", "tokens and rows are both there"),
        (GOOD, 'dtype = "int8"', 'dtype = "fp8"', "onnxruntime has no dtype fp8; it has float32"),
        (GOOD, '"onnxruntime"', '"onnx"', "variants[0].engine: Invalid enum value 'onnx'"),
        (GOOD, "max_error = 1\ncosine_min = 0.9", "", "accuracy.float32 sets no bound"),
        (GOOD, "[shapes]", "[shapes", "is not valid TOML"),
        (ENSEMBLE, SOURCE, "", "missing required field `source`"),
        (ENSEMBLE, SOURCE, f"{SOURCE}\nkeep = 1", "unknown field `keep`"),
        (ENSEMBLE, "shapes = {", 'source = "q"\nshapes = {', "r.source: all steps are of the"),
        (ENSEMBLE, ENSEMBLE, "source = 'x'\nsteps = 3", "steps.encoder must be a table"),
        (
            ENSEMBLE,
            'family = "transformers"',
            "",
            "steps.encoder: Object missing required",
        ),
        (ENSEMBLE, "max_error = 1 ", "", "steps.encoder: accuracy.float32 sets no bound"),
    ):
        assert old in text
        with pytest.raises(BuildError) as raised:
            read(tmp_path, text.replace(old, new), "encoder")
        assert said in str(raised.value)
        assert str(tmp_path / "recipe.toml") in str(raised.value)


def test_a_tokenizer_has_nothing_but_a_source(tmp_path: Path) -> None:
    text = 'family = "tokenizer"\nsource = "package:p"\nkeep = 3\n'
    assert read(tmp_path, text).keep == 3
    with pytest.raises(
        BuildError, match="family tokenizer has source and keep beside it; not engine"
    ):
        read(tmp_path, text + 'engine = "torch"')


def test_a_model_has_one_recipe(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"No recipe in .* makes 'm'; those with one: none"):
        job.load("m", tmp_path)
    for name, text in {"both": ENSEMBLE, "encoder": GOOD}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text(text)
    with pytest.raises(BuildError, match=r"encoder is built by .*both.* and by .*encoder.*: remov"):
        job.load("encoder", tmp_path)


def test_engines_and_dtypes_are_those_of_the_backend() -> None:
    assert {*get_args(Engine), "echo", "echo_decoder"} == ENGINES.keys()
    assert get_args(Dtype) == DTYPES


SCHEMA = job.PROJECT / "docs" / "recipe.schema.json"


def test_editors_have_the_schema_of_now() -> None:
    """`python -m build_scripts.recipe_file > docs/recipe.schema.json` makes it."""
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(recipe_file.schema()))


@pytest.mark.parametrize("path", recipe_file.every_recipe(), ids=lambda path: path.parent.name)
def test_editors_find_it_and_it_takes_what_the_build_takes(path: Path) -> None:
    first, given = path.read_text().splitlines()[0], tomllib.loads(path.read_text())
    assert (path.parent / first.removeprefix("#:schema ")).resolve() == SCHEMA
    jsonschema.validate(given, json.loads(SCHEMA.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(given | {"sorce": ""}, json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("table", recipe.TABLES)
def test_every_key_is_in_the_reference(table: type[recipe.Table]) -> None:
    page = (job.PROJECT / "docs" / "recipe.md").read_text()
    assert [name for name in table.__struct_fields__ if f"`{name}`" not in page] == []
