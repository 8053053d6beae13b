"""Models that only tests have."""

from collections.abc import Callable
from pathlib import Path

import pytest

IDENTITY = """
backend: "python"
max_batch_size: 8
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


@pytest.fixture
def add_model(tmp_path: Path) -> Callable[[str, str], Path]:
    """`add_model(name, source)` puts a Python model of one FP32 into a repository; its path."""

    def add(name: str, source: str) -> Path:
        version = tmp_path / "repository" / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(IDENTITY)
        (version / "model.py").write_text(source)
        return tmp_path / "repository"

    return add
