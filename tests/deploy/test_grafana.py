"""The dashboard, without Grafana: its queries against a live Prometheus that scrapes a live server,
under load."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import yaml

from python_mp.front.metrics import OF_STREAMS
from server.process.installation import PROJECT
from tests.deploy.scraping import RULES, Api, prometheus
from tests.support import repository
from tests.support.calls import Client, in_background, in_parallel
from tests.support.command import Command, command
from tests.support.processes import until
from tests.support.programs import Program
from tests.triton.test_generate import DECODER

FOLDER = PROJECT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboards" / "triton.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
STREAMS = re.compile("|".join(f"python_mp_{name}" for name in OF_STREAMS))
MODELS = ("embed", "embed_tokenizer", "embed_encoder", "embed_vectors", "ranker")
# What Grafana puts in.
VALUES = {"$instance": ".*", "$__rate_interval": "30s", "$__range": "5m"}
ALIVE_SECONDS = 60.0


@contextmanager
def load(server: Command) -> Iterator[None]:
    """Texts of unequal length in batches, rows for the ranker, and answers that begin alike, from
    two connections."""
    over = threading.Event()

    def run(_: int) -> None:
        with Client(server.endpoints) as client:
            while not over.wait(0.02):
                client.embed(["a short text", "a text that is longer than the other one"])
                client.score(np.zeros((3, 256), np.float32))
                generate(server, {"INPUT_IDS": list(range(100, 140)), "max_tokens": 8})

    clients = in_background(lambda: in_parallel(2, run))
    try:
        yield
    finally:
        over.set()
        clients.result(60)


def generate(server: Command, request: dict[str, Any]) -> None:
    url = f"http://{server.endpoints.http_url}/v2/models/decoder/generate_stream"
    with urllib.request.urlopen(url, json.dumps(request).encode(), timeout=20) as answer:
        assert answer.read().startswith(b"data: ")


@pytest.fixture(scope="module")
def api(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Of a Prometheus that has been looking at a server for a while."""
    binary, folder = program("prometheus"), tmp_path_factory.mktemp("prometheus")
    repository.copy(folder / "models", *MODELS)
    said = {"context_length": 1024, "vocabulary": 1 << 20, "eos_token_ids": [7]}
    decoder = repository.add(folder / "models", "decoder", DECODER)
    (decoder / "1" / "task.json").write_text(json.dumps(said))
    with command(folder / "models") as server:
        server.wait_ready()
        ports = {"triton": server.endpoints.metrics, "server": server.endpoints.health}
        targets = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        with load(server), prometheus(binary, folder, targets) as api:
            until(lambda: bool(api.query("model:answered:rate1m > 0")), ALIVE_SECONDS)
            yield api
        assert server.end(signal.SIGTERM)[0] == 0, server.output


def substituted(expression: str, model: str) -> str:
    for name, value in {**VALUES, "$model": model}.items():
        expression = expression.replace(name, value)
    return expression


def queries() -> Iterator[str]:
    """Of all panels but those of GPUs and of alerts, with the variables as the dashboard opens, and
    with two models chosen; those of streams with one that has some. A repeated panel has one model
    at a time."""
    for panel in PANELS:
        chosen = ["embed"] if "repeat" in panel else ["embed", "(embed|ranker)", ".*"]
        if any(STREAMS.search(target["expr"]) for target in panel["targets"]):
            chosen = ["decoder", ".*"]
        for target in panel["targets"]:
            if not re.search("DCGM|ALERTS", target["expr"]):
                yield from (substituted(target["expr"], model) for model in chosen)


def test_every_query_of_every_panel_returns_data(api: Api) -> None:
    waiting = set(queries())
    deadline = time.monotonic() + ALIVE_SECONDS
    while waiting and time.monotonic() < deadline:
        waiting = {each for each in waiting if not api.query(each)}
    assert not waiting, "no data:\n" + "\n".join(waiting)


def test_the_parts_of_a_request_are_all_of_it(api: Api) -> None:
    """What Triton and the ranks measured apart from each other."""
    query = 'sum by (part) (ensemble:part_seconds:mean1m{ensemble="embed"})'
    parts = {labels["part"] for labels, _ in api.query(query)}
    assert parts == {"pre", "queue", "forward", "collective wait", "post", "between"}


def test_every_metric_of_the_rules_is_there(api: Api) -> None:
    known = set(api.get("label/__name__/values"))
    named = set()
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                pattern = r"\b(?:tritonserver|python_mp|nv|process)_\w+"
                # Not the value of a label, and not a grouping one.
                named |= set(re.findall(pattern, re.sub(r'"[^"]*"', "", rule["expr"])))
    assert len(named) > 25
    assert named <= known, f"not on any page: {sorted(named - known)}"


def test_the_autoscalers_numbers(api: Api) -> None:
    """Each is 0 where there is no load, or where one of its names is wrong."""
    adapter = PROJECT / "deploy" / "kubernetes" / "autoscaling" / "prometheus-adapter.yaml"
    for rule in yaml.safe_load(adapter.read_text())["rules"]:
        query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'model=~"embed_encoder|ranker"')
        [(_, value)] = api.query(query.replace("<<.GroupBy>>", "job"))
        assert 0 < value < 1.5, rule["name"]
        streams = query.replace("embed_encoder|ranker", "decoder")
        [(_, value)] = api.query(streams.replace("<<.GroupBy>>", "job"))
        assert 0 <= value <= 1, rule["name"]
