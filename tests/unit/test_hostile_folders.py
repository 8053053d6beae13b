"""Whatever the texts of a checkpoint's folder say, `new` makes its models, or says in one sentence
why not: no key or value of them brings anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from build_scripts.new.__main__ import main
from tests.support.checkpoints import write_json
from tests.support.task_folders import chained, folder

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 3.5, 1e30, float("nan"), 10**12),
    *("", "x", "\0", "../..", "bert", [], ["a"], [None], {}, {"a": 1}, {"0": None}),
)
JUNK = b"", b"{", b"[]", b"\xff\xfe", b"null", b"3"
KINDS = ("bert", "embed"), ("roberta", "classify"), ("bert", "rerank"), ("vit", "classify")
Path_ = tuple[str | int, ...]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders in which nothing is wrong."""
    home = tmp_path_factory.mktemp("whole")
    made = [
        folder(home / f"{name}-{task}", name, task, labels=1 if task == "rerank" else 6)
        for name, task in KINDS
    ]
    chained(made[0], "cls")
    said = {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    write_json(made[0] / "config_sentence_transformers.json", said)
    write_json(made[0] / "sentence_bert_config.json", {"max_seq_length": 16})
    return made


def places(value: Any, before: Path_ = ()) -> Iterator[Path_]:
    """Of everything within a JSON value; of a vocabulary, none."""
    if len(before) > 1 and before[1] in ("vocab", "merges"):
        return
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*before, key)
        if isinstance(each, dict | list):
            yield from places(each, (*before, key))


def spoil(file: Path, data: st.DataObject) -> None:
    """One key or value is another, or gone; or the file is."""
    how = data.draw(st.sampled_from(["value"] * 12 + ["key"] * 3 + ["junk", "file"]))
    if how == "file":
        file.unlink()
    elif how == "junk":
        file.write_bytes(data.draw(st.sampled_from(JUNK)))
    else:
        said = json.loads(file.read_text())
        *path, last = data.draw(st.sampled_from([*places(said)]))
        inner = said
        for key in path:
            inner = inner[key]
        if how == "key":
            del inner[last]
        else:
            inner[last] = data.draw(st.sampled_from(ODD))
        write_json(file, said)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_new_makes_it_or_says_why_not(
    whole: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    case, repository = tmp_path / "case", tmp_path / "models"
    for each in (case, repository):
        shutil.rmtree(each, ignore_errors=True)
    shutil.copytree(data.draw(st.sampled_from(whole)), case)
    spoil(data.draw(st.sampled_from(sorted(case.rglob("*.json")))), data)
    failed = main(["n", str(case), f"--repository={repository}"])
    shown = capsys.readouterr()
    assert failed == ("build: " in shown.err + shown.out)
    assert [*repository.glob("[!.]*")] == [] if failed else (repository / "n").is_dir()


def test_what_is_pooled_is_read_and_never_assumed(tmp_path: Path, capsys: Any) -> None:
    """Where modules.json names a pooling, its file says how."""
    path = chained(folder(tmp_path / "case", "bert", "embed"), "cls")
    (path / "1_Pooling" / "config.json").unlink()
    assert main(["n", str(path), f"--repository={tmp_path / 'models'}"]) == 1
    assert "1_Pooling/config.json must say how is pooled, and is not there" in "".join(
        capsys.readouterr()
    )
