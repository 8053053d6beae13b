"""recipe.toml is edited where it must be, and nowhere else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_scripts import recipe, saving
from build_scripts.errors import BuildError
from build_scripts.job import REPOSITORY

RECIPES = [path.read_text() for path in sorted(REPOSITORY.glob("*/recipe.toml"))]
SPELLINGS = [
    'engine=\'torch\' # a comment with "quotes" and engine = 1\nsource = "x # y"\n',
    '  engine = "torch"\n[ layout ] # two\n  replicas = 2\n[accuracy.int8]\nengine = 3\n',
    '[accuracy]\nsource = 1\n[[variants]]\nengine = "torch"\n',
    "",
    "[layout]",
]
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "engine": st.sampled_from(["torch", "onnxruntime"]),
        "dtype": st.sampled_from(["float32", "int8"]),
        "source": st.text(st.characters(exclude_categories=["C"]), max_size=20),
        "layout": st.dictionaries(
            st.sampled_from(["tensor_parallel_size", "pipeline_parallel_size", "replicas"]),
            st.integers(1, 64),
            min_size=1,
        ),
    },
)


@given(text=st.sampled_from([*RECIPES, *SPELLINGS]), values=VALUES)
def test_an_edit_changes_these_values_and_no_other_line(text: str, values: dict[str, Any]) -> None:
    edited = saving.edited(text, values, "recipe.toml")
    before, after = tomllib.loads(text), tomllib.loads(edited)
    wanted = {**before, **values}
    if "layout" in values:
        wanted["layout"] = {**before.get("layout", {}), **values["layout"]}
    assert after == wanted
    kept = [line for line in text.splitlines() if line not in edited.splitlines()]
    assert len(kept) <= len(values) + len(values.get("layout", {}))
    assert saving.edited(edited, values, "recipe.toml") == edited
    for comment in (line for line in text.splitlines() if line.startswith("#")):
        assert comment in edited


@pytest.mark.parametrize(
    "text",
    [
        "layout = { tensor_parallel_size = 2 }",
        "layout.tensor_parallel_size = 2",
        '"engine" = "torch"',
    ],
)
def test_what_cannot_be_edited_is_said_with_its_lines(text: str, tmp_path: Path) -> None:
    values = {"engine": "onnxruntime", "layout": {"tensor_parallel_size": 1}}
    with pytest.raises(BuildError, match="cannot be edited safely; write into it:\nengine = "):
        saving.edited(text, values, str(tmp_path))


ENGINES = [(engine, dtype) for engine, dtypes in recipe.DTYPES.items() for dtype in dtypes]


@pytest.mark.parametrize("text", [each for each in RECIPES if "variants" in each])
@pytest.mark.parametrize(("engine", "dtype"), ENGINES)
def test_any_engine_that_has_a_gate_may_be_saved(text: str, engine: str, dtype: str) -> None:
    """The project's recipes make sense with it, their variants included."""
    if f"[accuracy.{dtype}]" in text:
        edited = saving.edited(text, {"engine": engine, "dtype": dtype}, "recipe.toml")
        recipe.check(edited, "recipe.toml")
        recipe.check(saving.edited(text, {"engine": engine, "dtype": "float32"}, ""), "recipe.toml")
