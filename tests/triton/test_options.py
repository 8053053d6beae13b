"""What Triton itself offers and our models make use of: warm-up, response cache, traces."""

import json
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from server.process.installation import PROJECT
from server.process.launch import TritonServer
from tests.support.harness import until
from tests.support.serving import Serve
from tests.triton.calls import Client, reference

MODELS = PROJECT / "model_repository"
STEPS = {"embed", "embed_tokenizer", "embed_encoder", "embed_pooler"}


class Collector(HTTPServer):
    """Takes OTLP over HTTP; knows the names of the spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names: set[str] = set()
        self.thread = threading.Thread(target=self.serve_forever, args=[0.05], daemon=True)
        self.thread.start()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in body["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                self.server.names.update(span["name"] for span in scope["spans"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.shutdown()
    made.thread.join()
    made.server_close()


@pytest.fixture(scope="module")
def options(collector: Collector) -> list[str]:
    """A cache, and traces as the compose file has them, of every request."""
    text = (PROJECT / "docker-compose.tracing.yml").read_text()
    traces = re.findall(r"--trace-config=\S+", text)
    assert len(traces) == 4
    url = f"http://127.0.0.1:{collector.server_port}/"
    traces = [each.replace("http://collector:4318/", url) for each in traces]
    traces = [re.sub(r"rate=.*", "rate=1", each) for each in traces]
    return [*traces, "--cache-config=local,size=33554432"]


@pytest.fixture(scope="module")
def optioned(
    serve: Serve, options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """Our models, but `embed` as docs/operations.md says for a cache."""
    repository = tmp_path_factory.mktemp("cached")
    for model in MODELS.iterdir():
        shutil.copytree(model, repository / model.name)
    operations = (PROJECT / "docs" / "operations.md").read_text()
    line = "response_cache { enable: true }"
    assert line in operations
    with (repository / "embed" / "config.pbtxt").open("a") as config:
        config.write(f"\n{line}\n")
    with serve(repository, options=options) as ready:
        yield ready


def series(server: TritonServer, name: str) -> dict[str, float]:
    """A metric of Triton's by the model."""
    with urllib.request.urlopen(server.endpoints.metrics_url, timeout=10) as page:
        text = page.read().decode()
    found = re.findall(rf'^{name}\{{model="(\w+)"[^}}]*\}} (\S+)$', text, re.MULTILINE)
    return {model: float(value) for model, value in found}


def test_every_model_has_computed_something_before_it_was_ready(optioned: TritonServer) -> None:
    spent = series(optioned, "nv_inference_compute_infer_duration_us")
    plain = {
        config.parent.name
        for config in MODELS.glob("*/config.pbtxt")
        if 'platform: "ensemble"' not in config.read_text()
    }
    assert len(plain) == 7
    assert {model for model in plain if spent[model] == 0} == set()


def test_a_text_is_embedded_once(optioned: TritonServer) -> None:
    text = [reference().texts[7]]
    with Client(optioned.endpoints) as client:
        first = client.embed(text)
        computed = series(optioned, "nv_inference_request_success")["embed_encoder"]
        again = [client.embed(text), client.embed(text)]
        assert series(optioned, "nv_cache_num_hits_per_model")["embed"] == 2
        assert series(optioned, "nv_inference_request_success")["embed_encoder"] == computed
        assert reference().cosine([7], first) > 0.999999
        for answer in again:
            np.testing.assert_array_equal(answer, first)
        client.embed([text[0] + "!"])
        assert series(optioned, "nv_inference_request_success")["embed_encoder"] == computed + 1


def test_a_request_is_traced_through_its_ensemble(
    optioned: TritonServer, collector: Collector
) -> None:
    with Client(optioned.endpoints) as client:
        client.embed([f"a text that nobody sent before {time.time()}"])
    until(lambda: collector.names >= STEPS, 30)
