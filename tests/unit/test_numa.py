import os
from pathlib import Path

import pytest

from python_mp.rank.numa import stay_near

ADDRESS = "0000:1b:00.0"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("0-1,8\n", {0, 1}),
        ("3", {3}),
        ("0-63\n", {0, 1, 3}),
        ("9\n", None),
        ("\n", None),
        (None, None),
    ],
)
def test_cores_of_another_node_are_left(
    said: str | None, left: set[int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: taken.append(cores))
    if said is not None:
        (tmp_path / ADDRESS).mkdir()
        (tmp_path / ADDRESS / "local_cpulist").write_text(said)
    stay_near(ADDRESS, tmp_path)
    assert taken == ([] if left is None else [left])
