"""The dashboard, without Grafana: its queries against a live Prometheus that scrapes a live server,
under load, one rank of which was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import yaml
from tritonclient.utils import InferenceServerException

from server.process.installation import PROJECT
from tests.deploy.scraping import RULES, Api, prometheus
from tests.triton import repository
from tests.triton.calls import Client
from tests.triton.test_server import Command

FOLDER = PROJECT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboards" / "triton.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GPU = {"GPU utilisation", "GPU memory", "GPU rows remapped"}
"""Panels whose metrics come from NVIDIA's exporter, here from one that makes them up."""
DCGM = """
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-1f",modelName="made up"} 35
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-1f",modelName="made up"} 1024
DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS{gpu="0",UUID="GPU-1f",modelName="made up"} 0
DCGM_FI_DEV_ROW_REMAP_FAILURE{gpu="0",UUID="GPU-1f",modelName="made up"} 0
DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{gpu="0",UUID="GPU-1f",modelName="made up"} 1
"""
MODELS = ("embed", "embed_tokenizer", "embed_encoder", "embed_pooler", "ranker")
# What Grafana puts in.
VALUES = {"$instance": ".*", "$__rate_interval": "30s", "$__range": "5m"}
ALIVE_SECONDS = 45.0


@dataclass(frozen=True)
class Watched:
    """A server, and the Prometheus that has been looking at it for a while."""

    server: Command
    api: Api


@contextmanager
def exporter(page: str) -> Iterator[str]:
    """Its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, args=[0.05], daemon=True).start()
        yield f"127.0.0.1:{served.server_port}"
        served.shutdown()


@contextmanager
def load(server: Command) -> Iterator[None]:
    """Texts of unequal length in batches, and rows for the ranker, from two connections."""
    over = threading.Event()

    def run() -> None:
        with Client(server.endpoints) as client:
            while not over.wait(0.02):
                with suppress(InferenceServerException):
                    client.embed(["a short text", "a text that is longer than the other one"])
                    client.score(np.zeros((3, 256), np.float32))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def kill_a_rank(server: Command) -> None:
    def ranks() -> list[int]:
        (replica,) = server.model("embed_encoder")["replicas"]
        return list(replica["ranks"])

    wait(ranks)
    os.kill(ranks()[1], signal.SIGKILL)


@pytest.fixture(scope="module")
def watched(
    program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    binary, folder = program("prometheus"), tmp_path_factory.mktemp("prometheus")
    models = tmp_path_factory.mktemp("models") / "repository"
    repository.copy(models, *MODELS)
    server = Command(models)
    try:
        server.wait_ready()
        at = server.endpoints
        with exporter(DCGM) as dcgm, load(server):
            targets = {
                "triton": f"127.0.0.1:{at.metrics}",
                "server": f"127.0.0.1:{at.health}",
                "dcgm": dcgm,
            }
            with prometheus(binary, folder, targets) as api:
                wait(lambda: api.query("model:answered:rate1m > 0"))
                kill_a_rank(server)
                wait(lambda: api.query("increase(python_mp_restarts_total[5m]) > 0"))
                yield Watched(server, api)
    finally:
        server.process.send_signal(signal.SIGTERM)
        code, output = server.end()
    assert code == 0, output


def wait(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + ALIVE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.2)


def substituted(expression: str, model: str) -> str:
    for name, value in {**VALUES, "$model": model}.items():
        expression = expression.replace(name, value)
    assert "$" not in re.sub(r'"\$\d"', "", expression), f"not substituted: {expression}"
    return expression


def queries(panel: dict[str, Any]) -> Iterator[str]:
    """Each with the variables as the dashboard opens, and with two models chosen. A repeated panel
    has one model at a time."""
    chosen = ["embed"] if "repeat" in panel else ["embed", "(embed|ranker)", ".*"]
    for target in panel["targets"]:
        for model in chosen:
            yield substituted(target["expr"], model)


def test_it_is_what_the_generator_makes() -> None:
    command = [sys.executable, "-m", "deploy.grafana.dashboard", "--check"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_panel_says_what_it_shows() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    assert set(titles) >= GPU
    for panel in PANELS:
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_rows_ask_in_this_order() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    words = ("up", "fast", "time", "rank", "restarted", "save", "Machine")
    for row, word in zip(rows, words, strict=True):
        assert word in row


def test_everything_asks_the_provisioned_data_source() -> None:
    provisioned = yaml.safe_load(
        (FOLDER / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )
    (source,) = provisioned["datasources"]
    named = [*PANELS, *DASHBOARD["annotations"]["list"], *DASHBOARD["templating"]["list"]]
    assert {each["datasource"]["uid"] for each in named} == {source["uid"]}


def test_every_query_of_every_panel_returns_data(watched: Watched) -> None:
    waiting = {(panel["title"], query) for panel in PANELS for query in queries(panel)}
    deadline = time.monotonic() + ALIVE_SECONDS
    while waiting and time.monotonic() < deadline:
        waiting = {each for each in waiting if not watched.api.query(each[1])}
    assert not waiting, "no data:\n" + "\n".join(f"{title}: {query}" for title, query in waiting)


def test_the_variables_have_their_values(watched: Watched) -> None:
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
        assert match is not None, variable["query"]
        series = watched.api.query(match[1])
        found[variable["name"]] = {labels[match[2]] for labels, _ in series}
        assert set(variable["current"]["value"]) <= found[variable["name"]] | {"$__all"}
    assert found == {"model": set(MODELS), "instance": {"127.0.0.1"}}


def test_annotations_mark_the_dead_rank(watched: Watched) -> None:
    now = time.time()
    found = {
        each["name"]: watched.api.get(
            "query_range",
            query=substituted(each["expr"], ""),
            start=str(now - 300),
            end=str(now),
            step="5",
        )["result"]
        for each in DASHBOARD["annotations"]["list"]
    }
    assert [name for name, series in found.items() if series] == ["Ranks restarted"]


def test_the_parts_of_a_request_are_all_of_it(watched: Watched) -> None:
    """Means of what Triton and the ranks measured apart from each other."""
    query = 'sum by (part) (ensemble:part_seconds:mean1m{ensemble="embed"})'
    parts = {labels["part"]: seconds for labels, seconds in watched.api.query(query)}
    assert set(parts) == {"pre", "queue", "forward", "collective wait", "post", "between"}
    ((_, whole),) = watched.api.query(
        'rate(nv_inference_request_duration_us{model="embed"}[1m])'
        ' / rate(nv_inference_request_success{model="embed"}[1m]) / 1e6'
    )
    assert sum(parts.values()) == pytest.approx(whole, rel=0.35)


def test_every_metric_of_the_rules_is_there(watched: Watched) -> None:
    known = set(watched.api.get("label/__name__/values"))
    named = set()
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                pattern = r"\b(?:tritonserver|python_mp|nv|DCGM|process)_\w+"
                # Not the value of a label, and not a grouping one.
                named |= set(re.findall(pattern, re.sub(r'"[^"]*"', "", rule["expr"])))
    assert len(named) > 25
    assert named <= known, f"not on any page: {sorted(named - known)}"


def test_the_watchers_page_costs_little(watched: Watched) -> None:
    ((_, seconds),) = watched.api.query('min_over_time(scrape_duration_seconds{job="server"}[1m])')
    assert seconds < 0.1
