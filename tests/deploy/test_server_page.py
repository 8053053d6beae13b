"""What a live server's watcher tells Prometheus when something happens."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.watch import stubs
from tests.triton import repository
from tests.triton.test_server import ECHO, Command, wait_until

CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
TRUE_WITHIN = 2.0


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Command]:
    repository.add(folder / "repository", "identity", CONFIG, model=ECHO)
    command = Command(folder / "repository", *options)
    try:
        command.wait_ready()
        yield command
    finally:
        command.process.send_signal(signal.SIGTERM)
        command.end()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Command]:
    with serving(tmp_path) as command:
        yield command


def read(server: Command, name: str, **labels: str) -> float:
    with urllib.request.urlopen(f"{server.endpoints.health_url}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
    for family in families:
        for sample in family.samples:
            if sample.name == f"tritonserver_{name}" and labels.items() <= sample.labels.items():
                return float(sample.value)
    return float("nan")


def soon(holds: Callable[[], bool]) -> None:
    wait_until(holds, TRUE_WITHIN)


def test_tritonserver_dies(server: Command) -> None:
    assert read(server, "up") == read(server, "ready") == 1
    assert read(server, "info", version=server.control.version()) == 1
    os.kill(server.triton, signal.SIGKILL)
    soon(lambda: read(server, "up") == read(server, "ready") == 0)
    wait_until(lambda: read(server, "ready") == 1, 30.0)
    assert read(server, "restarts_total") == 1
    assert read(server, "up") == read(server, "model_ready", model="identity") == 1


def test_a_stub_dies(server: Command) -> None:
    assert read(server, "model_restarts_total", model="identity") == 0
    (stub,) = stubs.living(server.triton)
    os.kill(stub.pid, signal.SIGKILL)
    soon(lambda: read(server, "model_ready", model="identity") == 0)
    wait_until(lambda: read(server, "model_restarts_total", model="identity") == 1, 30.0)
    assert read(server, "model_ready", model="identity") == 1
    assert read(server, "model_reloads_total", model="identity", result="succeeded") == 0


def test_files_change(server: Command, tmp_path: Path) -> None:
    config = tmp_path / "repository" / "identity" / "config.pbtxt"
    for result, text in (("failed", "nonsense {"), ("succeeded", CONFIG + "# changed\n")):
        assert read(server, "model_reloads_total", model="identity", result=result) == 0
        config.write_text(text)
        wait_until(
            lambda result=result: (
                read(server, "model_reloads_total", model="identity", result=result) == 1
            )
        )
    assert read(server, "restarts_total") == 0


def test_it_drains(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain-window-secs=2") as server:
        assert read(server, "draining") == 0
        server.process.send_signal(signal.SIGTERM)
        soon(lambda: read(server, "draining") == 1 and read(server, "ready") == 0)
        assert read(server, "up") == read(server, "model_ready", model="identity") == 1
