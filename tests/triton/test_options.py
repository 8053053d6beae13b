"""What Triton itself offers and our models make use of: warm-up, response cache, traces."""

import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from server.process.installation import PROJECT
from server.process.launch import TritonServer
from tests.support import repository
from tests.support.calls import Client, reference
from tests.support.processes import until
from tests.support.serving import Serve

MODELS = PROJECT / "model_repository"
STEPS = {"embed", "embed_tokenizer", "embed_encoder", "embed_vectors"}


@pytest.fixture(scope="module")
def spans() -> Iterator[tuple[int, set[str]]]:
    """A port that takes OTLP over HTTP, and the names of the spans that came."""
    names: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            names.update(re.findall(r'"name": ?"(\w+)"', body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as collector:
        threading.Thread(target=collector.serve_forever, args=[0.05], daemon=True).start()
        yield collector.server_port, names
        collector.shutdown()


@pytest.fixture(scope="module")
def optioned(
    serve: Serve, spans: tuple[int, set[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """`embed` as docs/operations.md says for a cache; traces as the compose file has them, of every
    request."""
    folder = tmp_path_factory.mktemp("cached") / "repository"
    repository.copy(folder, *(path.parent.name for path in MODELS.glob("*/config.pbtxt")))
    line = "response_cache { enable: true }"
    assert line in (PROJECT / "docs" / "operations.md").read_text()
    config = folder / "embed" / "config.pbtxt"
    text = config.read_text()
    config.unlink()  # it is a link to the project's own
    config.write_text(f"{text}\n{line}\n")
    traces = re.findall(r"--trace-config=\S+", (PROJECT / "docker-compose.tracing.yml").read_text())
    url = f"http://127.0.0.1:{spans[0]}/"
    traces = [each.replace("http://collector:4318/", url) for each in traces]
    traces = [re.sub(r"rate=.*", "rate=1", each) for each in traces]
    with serve(folder, options=[*traces, "--cache-config=local,size=33554432"]) as ready:
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
    assert len(plain) == 10
    generates = {name for name in plain if name.startswith("chat_")}  # Ranks warm up by themselves.
    assert {model for model in plain - generates if spent[model] == 0} == set()


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
    optioned: TritonServer, spans: tuple[int, set[str]]
) -> None:
    with Client(optioned.endpoints) as client:
        client.embed([f"a text that nobody sent before {time.time()}"])
    until(lambda: spans[1] >= STEPS, 30)
