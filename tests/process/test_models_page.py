"""docs/models.md: its files, as they stand there, are models that are built and verified."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from build_scripts import build
from build_scripts.places import PROJECT
from tests.support.checkpoints import tiny_bert

PAGE = (PROJECT / "docs" / "models.md").read_text()
FILES = re.findall(r"^```\w*\n# model_repository/(\w+)/(\S+)\n(.*?)^```", PAGE, re.DOTALL | re.M)


@pytest.mark.parametrize("model", ["pair", "words"])
def test_a_model_of_the_page_is_built(tmp_path: Path, model: str) -> None:
    checkpoint = tiny_bert(tmp_path / "checkpoint")  # eight numbers wide, where the page says 384
    folder = tmp_path / "repository" / model
    folder.mkdir(parents=True)
    for _, name, text in (file for file in FILES if file[0] == model):
        said = text.replace("384", "8").replace("checkpoints/words", str(checkpoint))
        (folder / name).write_text(said)
    places = f"--repository={folder.parent}", f"--workspace={tmp_path / 'workspace'}"
    assert build.main([model, *places]) == 0
    manifest = json.loads((folder / "1" / "manifest.json").read_text())
    assert manifest["engine"] == {"pair": "onnxruntime", "words": "torch"}[model]
    assert build.main(["--check", *places]) == 0
