"""docs/models.md: its files, as they stand there, and its commands make models that are built and
verified."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from build_scripts import build, code
from build_scripts.new.__main__ import main as new
from build_scripts.places import PROJECT
from tests.support.checkpoints import tiny_bert
from tests.support.task_folders import folder

PAGE = (PROJECT / "docs" / "models.md").read_text()
FILES = re.findall(r"^```\w*\n# (model_repository|nets)/(\w+)/(\S+)\n(.*?)^```", PAGE, re.S | re.M)
COMMANDS = re.findall(r"^\.venv/bin/python -m build_scripts\.(new|build) (.*)$", PAGE, re.M)


def write_files(model: str, place: Path, checkpoint: Path) -> None:
    place.mkdir(parents=True)
    for _, _, name, text in (file for file in FILES if file[1] == model):
        said = text.replace("384", "8").replace("checkpoints/words", str(checkpoint))
        (place / name).write_text(said)  # eight numbers wide, where the page says 384


@pytest.mark.parametrize("model", ["pair", "states"])
def test_a_model_of_the_page_is_built(tmp_path: Path, model: str) -> None:
    checkpoint = tiny_bert(tmp_path / "checkpoint")
    write_files(model, tmp_path / "repository" / model, checkpoint)
    places = f"--repository={tmp_path / 'repository'}", f"--workspace={tmp_path / 'workspace'}"
    assert build.main([model, *places]) == 0
    manifest = tmp_path / "repository" / model / "1" / "manifest.json"
    said = json.loads(manifest.read_text())
    assert said["engine"] == "torch"
    assert said["options"].get("rows") == {"states": "packed"}.get(model)
    assert build.main(["--check", *places]) == 0


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bert(tmp_path / "checkpoints" / "words")
    folder(tmp_path / "checkpoints" / "judge", "bert", "rerank", labels=1)
    write_files("edges", tmp_path / "nets" / "edges", tmp_path)
    net = code.load(tmp_path / "nets" / "edges" / "module.py").Edges()
    save_file(torch.nn.Module.state_dict(net), tmp_path / "nets" / "edges" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    done = []
    for program, said in COMMANDS:
        name, *rest = said.split()
        if name == "minilm":  # from the hub: tests/unit/test_new.py
            continue
        place = ["--repository=models"]
        done.append((program, name))
        if program == "new":
            assert new([name, *rest, *place]) == 0
        elif name == "edges":  # as the others are by tests/triton/test_new_served.py
            assert build.main([name, *rest, *place, "--workspace=workspace"]) == 0
    assert done == [
        (each, name) for name in ("words", "judge", "edges") for each in ("new", "build")
    ]
    assert (tmp_path / "models" / "edges" / "1" / "manifest.json").is_file()
