"""A model's file and what lies beside it: each model sees its own only, and leaves nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from build_scripts import code
from python_mp.machine import python_file

FILES = {
    "module.py": """
from __future__ import annotations
import json
from dataclasses import dataclass
import blocks, parts.conv
import parts.conv as conv
import parts.deep.leaf
from parts import conv as same, norm
from blocks import *
from .blocks import WHO as again
import random

@dataclass
class Noted:
    who: str

def later():
    import late
    from parts.lazy import NAME
    return late.WHO, NAME

values = [blocks.WHO, parts.conv.WHO, conv.WHO, same.WHO, norm.WHO, WHO, again, random.WHO]
stdlib = json.dumps([parts.deep.leaf.random()])
""",
    "blocks.py": "import parts\nfrom parts.conv import WHO\n",
    "parts/__init__.py": "",
    "parts/conv.py": "from . import norm\nfrom .norm import WHO\nfrom ..parts.norm import WHO\n",
    "parts/norm.py": "WHO = '{who}'\n",
    "parts/lazy.py": "NAME = __name__.partition('.')[2]\n",
    "parts/deep/leaf.py": "from importlib import import_module\nfrom time import time as random\n",
    "random.py": "WHO = '{who}'\n",
    "late.py": "from random import WHO\n",
    "unused.py": "raise RuntimeError\n",
}


def folder(tmp_path: Path, who: str) -> Path:
    for name, text in FILES.items():
        path = tmp_path / who / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{who}", who))
    return tmp_path / who


def test_two_models_with_files_of_the_same_names_do_not_meet(tmp_path: Path) -> None:
    before = set(sys.modules)
    loaded: list[Any] = [
        python_file.load(folder(tmp_path, who) / "module.py", "module") for who in "ab"
    ]
    import random

    assert random.random() < 1  # Python's own
    for who, module in zip("ab", loaded, strict=True):
        assert set(module.values) == {who}
        assert module.later() == (who, "parts.lazy")
        assert module.Noted("x").who == "x"
    assert not {name for name in set(sys.modules) - before if name.startswith("model")}
    assert not list(tmp_path.rglob("__pycache__"))


def test_what_is_imported_is_of_the_artifact_and_of_its_hash(tmp_path: Path) -> None:
    made = folder(tmp_path, "a")
    assert code.files(made / "module.py").keys() == FILES.keys() - {"unused.py"}
    before = code.of_file(made / "module.py")
    for name, text in FILES.items():
        (made / name).write_text(text + "# edited\n")
        assert (code.of_file(made / "module.py") != before) == (name != "unused.py"), name
        (made / name).write_text(text.replace("{who}", "a"))
        assert code.of_file(made / "module.py") == before


def test_what_is_not_there_or_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text("WHO = 1")
    (made := tmp_path / "model").mkdir()
    (made / "linked.py").symlink_to(tmp_path / "outside.py")
    for name in ("linked", "parts.conv", "nothing"):
        (made / "module.py").write_text(f"import {name}")
        with pytest.raises(ModuleNotFoundError):
            python_file.load(made / "module.py", "module")
