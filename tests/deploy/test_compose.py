"""The README's compose section on a real Docker engine: built, up, used, hurt, scaled, down."""

from __future__ import annotations

import json
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from clients.at_once import Server
from clients.classify import classify
from clients.connection import Protocol
from clients.embed import embed
from server.endpoints import Endpoints
from server.process.installation import PROJECT
from tests.deploy.stack import KEY, RUNBOOKS, TOKEN, Stack, engine_answers, fresh_clone
from tests.support import python_models
from tests.support.calls import Client, in_background, in_parallel, reference
from tests.support.examples import digits
from tests.support.processes import until
from tests.support.programs import Program

BUILD_SECONDS = 1200.0
LIMIT_BYTES = 2e9
OWNER = 12345 if os.getuid() == 0 else os.getuid()  # of the clone
AROUND = 3.0  # seconds of load before and after it
VIA: list[tuple[Protocol, str]] = [
    ("http", "127.0.0.1:{HTTP_PORT}"),
    ("grpc", "127.0.0.1:{GRPC_PORT}"),
    ("http", "https://localhost:{TLS_PORT}"),
    ("grpc", "grpcs://localhost:{TLS_PORT}"),
]
# The first test of them builds the images, whichever it is.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_SECONDS)]


@pytest.fixture(scope="module")
def stack(
    program: Program, composer: Sequence[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Everything but Grafana, whose image no test needs."""
    docker = program("docker")
    if not engine_answers(docker):
        pytest.skip("no Docker engine answers here")
    clone = fresh_clone(tmp_path_factory.mktemp("clone") / "model_repository", OWNER)
    with Stack(composer, docker, clone) as made:
        made.compose("build", "triton", "front", "build")
        made.compose("up", "--detach", "front", "prometheus")  # ends when they are ready
        yield made


@pytest.fixture(scope="module")
def ca(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stack.certificate(tmp_path_factory.mktemp("tls") / "tls.crt")


@pytest.mark.parametrize(("protocol", "url"), VIA, ids=lambda value: value)
def test_both_ensembles_answer(
    stack: Stack, ca: Path, protocol: Protocol, url: str, tmp_path: Path
) -> None:
    address = url.format(**stack.ports)
    which = list(range(0, 200, 20))
    texts = [reference().texts[index] for index in which]
    vectors = embed(texts, address, protocol, batch_size=4, ca=ca)
    assert reference().cosine(which, vectors) > 0.999999
    digits.main(["--images", str(tmp_path)])
    images = sorted(tmp_path.glob("*.png"))[:4]
    answers = list(classify(images, 1, Server(address, protocol, ca=ca)))
    assert [answer.error for answer in answers] == [""] * 4
    assert all(answer.result and answer.result[0][1] > 0.5 for answer in answers)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{OPENAI_PORT}", "https://localhost:{TLS_PORT}"])
def test_openais_clients_are_answered(stack: Stack, ca: Path, url: str) -> None:
    def client(key: str) -> openai.OpenAI:
        trust = ssl.create_default_context(cafile=str(ca))
        http = openai.DefaultHttpxClient(trust_env=False, verify=trust)
        return openai.OpenAI(base_url=base, api_key=key, max_retries=0, http_client=http)

    base = f"{url.format(**stack.ports)}/v1"
    with client(KEY) as known, client("a guess") as stranger:
        answer = known.embeddings.create(model="embed", input=[reference().texts[3]])
        with pytest.raises(openai.AuthenticationError):
            stranger.embeddings.create(model="embed", input="a")
    assert reference().cosine([3], np.array([answer.data[0].embedding])) > 0.999999


def test_containers_are_closed_as_the_file_says(stack: Stack) -> None:
    for service in ("triton", "front", "prometheus"):
        [container] = stack.containers(service)
        host = stack.inspect(container)["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["Memory"] > 0, service
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service
    for service in ("triton", "front"):
        [container] = stack.containers(service)
        assert stack.docker("exec", container, "id", "-u").strip() == "10001"
    [triton] = stack.containers("triton")
    assert not any((stack.inspect(triton)["NetworkSettings"]["Ports"] or {}).values())


def test_the_image_is_small_and_has_what_was_compiled_but_no_compiler(stack: Stack) -> None:
    [triton] = stack.containers("triton")
    image = stack.inspect(triton)["Image"]
    assert int(stack.docker("image", "inspect", "-f", "{{.Size}}", image)) < LIMIT_BYTES
    for compiled in ("python_mp.rank._shm", "torch, python_mp.sharding._kernels"):
        stack.docker("exec", triton, "python3", "-c", f"import {compiled}")
    for name in ("cc", "gcc", "g++", "make"):
        with pytest.raises(AssertionError):
            stack.docker("exec", triton, "sh", "-c", f"command -v {name}")


def test_prometheus_has_scraped_both_pages(stack: Stack) -> None:
    for expression in (
        'python_mp_requests_total{model="embed_encoder"} > 0',
        'nv_inference_request_success{model="embed"} > 0',
        "tritonserver_ready == 1",
        'up{job="triton"} == 1',
    ):
        until(lambda expression=expression: len(stack.prometheus.query(expression)) == 1, 60)


def status_of(stack: Stack, path: str, body: bytes | None = None, token: str = "") -> int:
    url = f"http://127.0.0.1:{stack.ports['HTTP_PORT']}{path}"
    headers = {"Content-Type": "application/json"} | ({"triton-admin": token} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_only_what_may_reach_triton_does(stack: Stack) -> None:
    [triton] = stack.containers("triton")
    before = stack.docker("top", triton, "-o", "pid,comm")
    tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 2**62], "data": ["a"]}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert status_of(stack, "/v2/models/embed/infer", body) == 400
    for token, status in (("", 403), ("not-the-token", 403), (TOKEN, 200)):
        assert status_of(stack, "/v2/repository/index", b"", token) == status
    assert stack.docker("top", triton, "-o", "pid,comm") == before
    assert status_of(stack, "/v2/health/ready") == 200


def test_a_container_that_dies_is_started_again(stack: Stack) -> None:
    [triton] = stack.containers("triton")
    stack.kill(triton)
    until(lambda: stack.inspect(triton)["RestartCount"] == 1, 30)
    until(lambda: status_of(stack, "/v2/health/ready") == 200, 120)
    url = f"127.0.0.1:{stack.ports['GRPC_PORT']}"
    assert reference().cosine([3], embed([reference().texts[3]], url)) > 0.999999


@pytest.mark.campaign  # an alert waits for minutes
def test_an_alert_reaches_alertmanager(stack: Stack) -> None:
    """A new folder with a mistake: its alert is told, and no server is unready for it."""
    stack.compose("up", "--detach", "--no-deps", "alertmanager")
    broken = stack.repository / "broken" / "1"
    broken.mkdir(parents=True)
    (broken.parent / "config.pbtxt").write_text("a mistake")
    url = f"http://127.0.0.1:{stack.ports['ALERTMANAGER_PORT']}/api/v2/alerts?filter=model=broken"
    until(lambda: bool(page_of(url)), 180)
    [alert] = page_of(url)
    assert alert["labels"]["alertname"] == "ModelDown"
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS}#modeldown"
    assert status_of(stack, "/v2/health/ready") == 200


def page_of(url: str) -> Any:
    """Nothing where there is no such page."""
    try:
        with urllib.request.urlopen(url, timeout=10) as page:
            return json.load(page)
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return None


def under_load(stack: Stack, hurt: Callable[[], object]) -> list[str]:
    """What became of eight clients' requests, of which nobody asks again, for some seconds before
    and after it: empty where the answer was right."""
    stop = threading.Event()
    ports = {kind: stack.ports[f"{kind.upper()}_PORT"] for kind in ("http", "grpc")}
    at = replace(Endpoints.free(), **ports)

    def send(number: int) -> list[str]:
        outcomes = []
        with Client(at, ("grpc", "http")[number % 2]) as client:
            while not stop.is_set():
                which = (8 * len(outcomes) + number) % 200
                try:
                    vector = client.embed([reference().texts[which]])
                    assert reference().cosine([which], vector) > 0.999999
                    outcomes.append("")
                except Exception as error:
                    outcomes.append(f"{type(error).__name__}: {error}")
        return outcomes

    clients = in_background(lambda: in_parallel(8, send))
    time.sleep(AROUND)
    try:
        hurt()
        time.sleep(AROUND)
    finally:
        stop.set()
    found = [each for outcomes in clients.result(60) for each in outcomes]
    assert found.count("") > 50
    return [each for each in found if each]


@pytest.fixture(scope="module")
def pair(stack: Stack) -> list[str]:
    """Two servers."""
    stack.compose("up", "--detach", "--no-recreate", "--scale", "triton=2", "front")
    found = stack.containers("triton")
    assert len(found) == 2
    return found


def test_one_of_two_may_die_under_load(stack: Stack, pair: list[str]) -> None:
    errors = under_load(stack, lambda: stack.kill(pair[0]))
    # Of eight in hand, and what the dying one's kernel accepted in its last moment.
    assert len(errors) <= 16
    assert all("was lost" in error for error in errors), errors
    until(lambda: all_healthy(stack, pair), 120)


def test_one_of_two_may_be_stopped_under_load(stack: Stack, pair: list[str]) -> None:
    """It drains, and no request is lost."""
    assert under_load(stack, lambda: stack.docker("stop", "--time", "60", pair[0])) == []
    assert stack.inspect(pair[0])["State"]["ExitCode"] == 0


def all_healthy(stack: Stack, containers: list[str]) -> bool:
    return all(
        stack.inspect(each)["State"].get("Health", {}).get("Status") == "healthy"
        for each in containers
    )


def test_the_repository_of_the_clone_is_built_and_served(stack: Stack) -> None:
    """`up` built what was missing, and it belongs to whom the clone does."""
    manifests = list(stack.repository.glob("*/*/manifest.json"))
    assert {path.parts[-3] for path in manifests} >= {"classifier", "embed_encoder", "ranker"}
    for path in manifests:
        assert {path.stat().st_uid, path.parent.stat().st_uid} == {OWNER}


def test_agents_in_containers_connect(stack: Stack) -> None:
    files = ["-f", "docker-compose.yml", "-f", "docker-compose.hosts.yml"]
    agents = "agent-b", "agent-c"
    stack.compose(*files, "up", "--detach", "--no-deps", "triton", *agents)
    for each in agents:
        said = f"connected to triton:8005 as {each[-1]}"
        until(lambda: said in stack.compose(*files, "logs", each), 120)  # noqa: B023


@pytest.mark.campaign
def test_the_documented_commands_build_and_serve_another_engine(stack: Stack) -> None:
    """In their order, once the recipe says it; and the next `up` does not undo it."""
    recipe = stack.repository / "embed" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('engine = "torch"', 'engine = "onnxruntime"', 1))
    section = (PROJECT / "docs" / "operations.md").read_text().split("\n## Engines\n")[1]
    commands = re.findall(r"^docker compose (run --rm build [^#\n]*)", section, re.M)
    assert len(commands) == 2
    for command in [*commands, "run --rm build"]:
        stack.compose(*command.split())
    until(lambda: served_versions(stack, "embed_encoder") == ["2"], 120)
    manifest = stack.repository / "embed_encoder" / "2" / "manifest.json"
    assert json.loads(manifest.read_text())["engine"] == "onnxruntime"
    url = f"127.0.0.1:{stack.ports['GRPC_PORT']}"
    assert reference().cosine([3], embed([reference().texts[3]], url)) > 0.9999


def test_a_model_that_is_added_is_served(stack: Stack) -> None:
    python_models.add(stack.repository, "mine")
    until(lambda: served_versions(stack, "mine") == ["1"], 120)


def served_versions(stack: Stack, model: str) -> list[str]:
    page = page_of(f"http://127.0.0.1:{stack.ports['HTTP_PORT']}/v2/models/{model}")
    return list(page["versions"]) if page else []
