"""The watcher's page for Prometheus, from what /status would say."""

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import server
from server.pages.exposition import Metrics, parts
from server.process.installation import PROJECT
from server.watch import memory_use
from server.watch.memory_use import Memory

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def model(backend: str = "python", *states: str, steps: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "ready": True,
        "unbuilt": False,
        "backend": backend,
        "steps": list(steps),
        "restarts": 0,
        "reloads": {"succeeded": 0, "failed": 0},
        "replicas": [{"state": state} for state in states],
    }


def status(**models: dict[str, Any]) -> dict[str, Any]:
    about = {"pid": 7, "restarts": 3, "version": "2.51.0"}
    errors = {"the report": {"errors": 2, "error": ""}}
    base = {"ready": True, "draining": False, "server": about}
    return base | {"models": models, "errors": errors}


def samples(page: bytes) -> Samples:
    return {
        (sample.name.removeprefix("tritonserver_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def read(said: dict[str, Any]) -> Samples:
    metrics = Metrics()
    metrics.status = said
    return samples(metrics.page())


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_the_server() -> None:
    found = read(status())
    assert value(found, "ready") == value(found, "up") == 1
    assert value(found, "draining") == 0
    assert value(found, "restarts_total") == 3
    assert value(found, "watcher_errors_total", loop="the report") == 2
    assert value(found, "info", version="2.51.0", project_version=server.__version__) == 1
    said = status()
    said["ready"], said["draining"], said["server"]["pid"] = False, True, None
    found = read(said)
    assert value(found, "ready") == value(found, "up") == 0
    assert value(found, "draining") == 1


def test_models() -> None:
    hurt = model() | {"ready": False, "restarts": 2, "reloads": {"succeeded": 4, "failed": 1}}
    sharded = model("python_mp", "serving", "down", "serving")
    found = read(status(hurt=hurt, sharded=sharded, coming=hurt | {"unbuilt": True}))
    assert value(found, "model_unbuilt", model="hurt") == 0
    assert value(found, "model_unbuilt", model="coming") == 1
    assert value(found, "model_ready", model="hurt") == 0
    assert value(found, "model_ready", model="sharded") == 1
    assert value(found, "model_restarts_total", model="hurt") == 2
    assert value(found, "model_reloads_total", model="hurt", result="succeeded") == 4
    assert value(found, "model_reloads_total", model="hurt", result="failed") == 1
    states = {"serving": 2, "down": 1, "starting": 0, "restarting": 0}
    for state, count in states.items():
        assert value(found, "replicas", model="sharded", state=state) == count
    assert not [key for key in found if key[0] == "replicas" and ("model", "hurt") in key[1]]
    steps = {"tokenizer": model(), "encoder": model("python_mp", "serving"), "pooler": model()}
    found = read(status(embed=model("", steps=(*steps,)), **steps))
    for step, part in zip(steps, ("pre", "forward", "post"), strict=True):
        assert value(found, "model_step", ensemble="embed", model=step, part=part) == 1
        assert value(found, "model_step", ensemble=step, model=step, part="forward") == 1


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert server.__version__ == project["version"]


# -- memory ------------------------------------------------------------------------------------

GIB = 1 << 30


def write(root: Path, path: str, text: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 GiB, 4 of which are taken for good."""
    machine = SimpleNamespace(total=16 * GIB, available=12 * GIB)
    monkeypatch.setattr(memory_use.psutil, "virtual_memory", lambda: machine)
    write(tmp_path, "membership", "0::/")
    return tmp_path


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, Memory(4 * GIB, 16 * GIB)),
        (  # the page cache is left out
            {"memory.max": 8 * GIB, "memory.stat": f"anon {GIB}\nfile {6 * GIB}\nshmem {2 * GIB}"},
            Memory(3 * GIB, 8 * GIB),
        ),
        (  # version 1: its path is that on the host, and is not there inside
            {"membership": "5:cpu:/docker/1f\n4:memory:/docker/1f\n0::/"}
            | {"memory/memory.limit_in_bytes": 2 * GIB}
            | {"memory/memory.stat": f"rss 7\ntotal_rss {GIB // 2}\ntotal_shmem {GIB // 4}"},
            Memory(3 * GIB // 4, 2 * GIB),
        ),
    ],
)
def test_memory(root: Path, files: dict[str, object], memory: Memory) -> None:
    for path, text in files.items():
        write(root, path if path == "membership" else f"cgroups/{path}", text)
    assert memory_use.memory(root / "cgroups", root / "membership") == memory


def test_parts() -> None:
    backends = "python python_mp python python_mp python"
    assert parts(backends.split()) == ["pre", "forward", "forward", "forward", "post"]
    assert parts(["python", "python"]) == ["forward", "forward"]
    assert parts([None, "python_mp"]) == ["pre", "forward"]
