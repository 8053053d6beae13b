"""config.pbtxt: read as Triton reads it, edited where a recipe decides and nowhere else."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from build_scripts import triton_config
from build_scripts.errors import BuildError
from build_scripts.job import REPOSITORY
from build_scripts.recipe import Accuracy, Layout, Recipe, Shapes
from build_scripts.triton_config import edited, model_config
from python_mp import layout

ENCODER = (REPOSITORY / "embed_encoder" / "config.pbtxt").read_text()
ONE, TWO = Layout(1), Layout(2)
ENGINE = 'parameters { key: "engine" value { string_value: "torch" } }\n'
HEAD = f'name: "m"\nmax_batch_size: 4\n{ENGINE}'


def changes(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "+-"]


def test_what_fits_is_left_as_it_is() -> None:
    assert edited(ENCODER, TWO, "torch", "float32") == ENCODER
    assert edited(HEAD, ONE, "torch", "float32") == HEAD


def test_only_the_lines_of_the_change_change() -> None:
    after = edited(ENCODER, TWO, "onnxruntime", "int8")
    assert changes(ENCODER, after) == [
        '- parameters { key: "engine" value { string_value: "torch" } }',
        '+ parameters { key: "engine" value { string_value: "onnxruntime" } }',
        '- parameters { key: "dtype" value { string_value: "float32" } }',
        '+ parameters { key: "dtype" value { string_value: "int8" } }',
    ]


def test_passive_instances_come_and_go() -> None:
    single = edited(ENCODER, ONE, "torch", "float32")
    assert "passive: true" not in single
    assert "# One rank lives with each instance" in single
    assert edited(single, TWO, "torch", "float32") == ENCODER


def test_replicas_are_counted() -> None:
    after = edited(ENCODER, Layout(2, 2, 3), "torch", "float32")
    assert '{ name: "lead" count: 3 kind: KIND_CPU },' in after
    assert '{ name: "shard" count: 9 kind: KIND_CPU passive: true }' in after


SPELLINGS = {
    "none": HEAD,
    "no_name": "max_batch_size: 4\n" + ENGINE,
    "list": HEAD + "instance_group [ { kind: KIND_CPU } ]\n",
    "list_of_lines": HEAD + "instance_group: [\n  {\n    kind: KIND_CPU\n    count: 1\n  }\n]\n",
    "single": HEAD + "instance_group { kind: KIND_CPU }",
    "passive_first": HEAD + 'instance_group [ { passive: true count: 2 }, { name: "a]" } ]',
    "two_entries": HEAD + "instance_group { count: 1 }\ninstance_group { passive: true }\n",
    "in_a_comment": HEAD + "# instance_group [ {\ninstance_group [ { count: 1 } ] # } {\n",
    "parameters_in_a_list": (
        'parameters: [ { key: "engine", value: { string_value: "echo" } },'
        ' { key: "dtype" value { string_value: "bfloat16" } } ]\nmax_batch_size: 4\n'
    ),
    "parameter_in_a_comment": f"# {ENGINE}{HEAD}",
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("wanted", [ONE, Layout(1, 1, 3), Layout(2, 2, 2)], ids=str)
def test_every_spelling_is_edited(tmp_path: Path, name: str, wanted: Layout) -> None:
    (tmp_path / "config.pbtxt").write_text(SPELLINGS[name])
    recipe = Recipe(
        "module", "x", layout=wanted, shapes=Shapes(rows=(1, 1, 1)), accuracy=Accuracy(max_error=1)
    )
    config = model_config(tmp_path, recipe)
    replicas = layout.replicas(config)
    assert (len(replicas), len(replicas[0].ranks)) == (wanted.replicas, wanted.world_size)
    assert (config.parameters.engine, config.parameters.dtype) == ("torch", "float32")
    text = edited(SPELLINGS[name], wanted, "torch", "float32")
    assert edited(text, wanted, "torch", "float32") == text


GPU = HEAD + "instance_group [ { kind: KIND_GPU gpus: [ 0, 1 ] } ]\n"


def test_gpus_are_not_guessed() -> None:
    assert edited(GPU, Layout(1, 1, 2), "torch", "float32") == GPU
    with pytest.raises(BuildError) as raised:
        edited(GPU, TWO, "torch", "float32", where="m/config.pbtxt")
    assert "m/config.pbtxt has other instances than 1 active and 1 passive" in str(raised.value)
    assert '{ name: "shard" count: 1 kind: KIND_CPU passive: true } ]' in str(raised.value)


@pytest.mark.parametrize("seen", [1, 2])
def test_a_group_that_names_no_gpus_has_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    """As Triton completes it; with none to be seen there is nothing to serve on."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    (tmp_path / "config.pbtxt").write_text(HEAD + "instance_group [ { kind: KIND_GPU } ]\n")
    recipe = Recipe("module", "x", shapes=Shapes(rows=(1, 1, 1)), accuracy=Accuracy(max_error=1))
    replicas = layout.replicas(model_config(tmp_path, recipe))
    assert [replica.leader.device for replica in replicas] == list(range(seen))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(BuildError, match=r"names no GPU, and there is none here: .*`gpus: \[ 0, 1"):
        model_config(tmp_path, recipe)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense {", "is not valid"),
        (HEAD + ENGINE.replace("torch", "echo"), "has the parameter 'engine' 2 times"),
        (HEAD + "instance_group [ { count: 1 }, { count: 2 } ]", "cannot be edited safely"),
    ],
)
def test_what_cannot_be_edited_is_refused(text: str, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        edited(text, TWO, "onnxruntime", "float32")


def test_a_comment_between_entries_is_kept() -> None:
    text = HEAD + "instance_group [ { count: 1 }, # the lead\n { passive: true } ]\n"
    after = edited(text, ONE, "torch", "float32")
    assert after == HEAD + "instance_group [ { count: 1 } # the lead ]\n".replace(" ]", "\n ]")


def test_an_edit_that_changes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        triton_config, "_with_instances", lambda text, *_: text.replace("batch_size: 4", "")
    )
    with pytest.raises(BuildError, match="cannot be edited safely; write into it:\ninstance_group"):
        edited(HEAD, ONE, "onnxruntime", "float32")


def test_what_python_mp_refuses_is_named_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(
        HEAD + 'input [ { name: "T" data_type: TYPE_STRING dims: [ 1 ] } ]'
    )
    recipe = Recipe("tokenizer", "x")
    with pytest.raises(BuildError, match=r"config\.pbtxt: tensor 'T' is TYPE_STRING"):
        model_config(tmp_path, recipe)
