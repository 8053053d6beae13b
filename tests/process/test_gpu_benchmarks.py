"""`python -m benchmarks.gpu` as far as a machine without a GPU goes: parts that are done, that fail
and that hang, and a rehearsal of what is measured."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.__main__ import Outcome, lines, main, run
from clients.chaos.processes import state
from tests.support.checkpoints import packaged
from tests.support.processes import until


def child(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_a_part_that_fails_says_so_and_keeps_what_it_had() -> None:
    says = 'print("hello"); print(\'{"a": 1}\', flush=True); '
    done = run("part", child(says), 60)
    assert (done.state, done.records) == ("done", [{"a": 1}])
    failed = run("part", child(says + "raise ValueError('no kernel')"), 60)
    assert (failed.state, failed.records) == ("failed: ValueError: no kernel", [{"a": 1}])
    assert run("part", child(says), 0).state == "not begun: no time was left"


def test_a_part_that_hangs_ends_with_what_it_started() -> None:
    program = (
        "import subprocess, sys, time\n"
        "each = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('{\"pid\": %d}' % each.pid, flush=True)\n"
        "time.sleep(600)"
    )
    hung = run("part", child(program), 5)
    assert hung.state == "not done after 5 s"
    ended = psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE
    until(lambda: state(hung.records[0]["pid"]) in ended)


def test_records_of_one_kind_are_one_table() -> None:
    records = [{"texts": 1, "ms": 0.5}, {"texts": 1024, "ms": 8.25}, {"other": "x"}]
    assert [*lines(Outcome("rank", "done", 2.0, records))] == [
        "rank: done (2 s)",
        "  texts    ms",
        "      1   0.5",
        "   1024  8.25",
        "  other",
        "      x",
    ]


def rehearsed(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, object]]:
    """The records of the parts that a CPU can do, with time for a busy machine."""
    parts = tuple(replace(part, seconds=280) for part in gpu.SCRIPTS[script])
    monkeypatch.setitem(gpu.SCRIPTS, script, parts)
    file = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--seconds", "280", "--json", str(file)]
    assert main([script, str(packaged().path), *options]) == 0
    found = json.loads(file.read_text())
    assert {"torch", "cores"} <= found["machine"].keys()
    records: list[dict[str, object]] = [
        record for part in found["parts"] for record in part["records"]
    ]
    assert all(float(str(record.get("one_minus_cosine", 0))) < 1e-4 for record in records)
    return records


@pytest.mark.campaign
def test_ranks_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = rehearsed("device", tmp_path, monkeypatch)
    sizes = [record["texts_a_request"] for record in records if "texts_per_second" in record]
    assert sizes == [1, 4]
    assert [each["sequences"] for each in records if "sequences" in each] == [1, 8, 64]


@pytest.mark.campaign
def test_what_is_served_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = rehearsed("served", tmp_path, monkeypatch)
    loads = [record for record in records if "in_flight" in record]
    assert [record["model"] for record in loads] == ["embed", "sentence_transformers"] * 2
    assert any("one_minus_cosine" in record for record in records)
