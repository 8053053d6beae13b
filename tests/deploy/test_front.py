"""Through nginx clients see what they would see of Triton: HTTP, HTTPS, gRPC, gRPC with TLS."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from clients import connection
from tests.deploy.conftest import Fronted
from tests.deploy.front import SECONDS, SERVICE, TOKEN, Front
from tests.support.calls import Array, in_parallel
from tests.support.processes import until

WAYS = ("http", "https", "grpc", "grpcs")
TENSORS = {
    "4 MB": ("wide", np.random.default_rng(1).random((1, 1 << 20), np.float32)),
    "octets": ("text", np.array([[bytes(range(256)), b'{"a":1}'], [b"", b"\xff\0\r\n"]], object)),
}
ADMIN = {
    "repository/index": "POST",
    "models/wide/config": "GET",
    "models/wide/versions/1/config": "GET",
    "models/stats": "GET",
    "trace/setting": "GET",
    "logging": "GET",
}
OPEN = {
    "": "",
    "/health/live": "",
    "/health/ready": '"ready": true',  # of the watcher: Triton's own has no body
    "/models/wide": '"platform":"python"',
    "/models/wide/versions/1/ready": "",
}
SAME = ("Content-Type", "Content-Length", "Transfer-Encoding", "Server")
CLOSED = (
    "/", "/v2/", "/v2/models/wide/", "/v1x", "/metrics", "/v2/health/live/..",
    "/v2/systemsharedmemory/region/x/register", "/v2/models/a%2fb", "/v2/models/wide%20/infer",
    "/v2/repository/models/wide", "/v2/models/wide/versions/-1/ready", "/v2/models/w%5cide",
)  # fmt: skip


def connect(front: Front, way: str) -> Any:
    address = {"http": f"127.0.0.1:{front.http}", "grpc": front.grpc_url}
    url = address.get(way, f"{way}://{front.tls_url}")
    return connection.connect("grpc" if "grpc" in way else "http", url, front.certificate)


def infer(client: Any, way: str, model: str, array: Array) -> Array:
    module = connection.MODULES["grpc" if "grpc" in way else "http"]
    tensor = module.InferInput("IN", array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    answer: Array = client.infer(model, [tensor]).as_numpy("OUT")
    return answer


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_sent_comes_back(both: Fronted, way: str, tensor: str) -> None:
    """The models are echoes: not a bit is changed on the way."""
    model, array = TENSORS[tensor]
    with connect(both.front, way) as client:
        np.testing.assert_array_equal(infer(client, way, model, array), array)


@pytest.mark.parametrize("way", WAYS)
def test_health_metadata_and_tritons_own_refusals(both: Fronted, way: str) -> None:
    with connect(both.front, way) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("wide")
        assert not client.is_model_ready("nope")
        for what in (client.get_server_metadata(), client.get_model_metadata("wide")):
            assert "name" in str(what)
        with pytest.raises(InferenceServerException, match="nope") as refused:
            infer(client, way, "nope", np.ones((1, 1), np.float32))
        assert refused.value.status() in ("404", "StatusCode.NOT_FOUND")


def ask_too_much(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="larger than the data"):
        client.infer("wide", [tritonclient.grpc.InferInput("IN", [9999], "FP32")])


def test_a_refusal_leaves_the_others_of_its_connection_alone(both: Fronted) -> None:
    """HTTP/2 carries all of a client's calls in one connection."""
    with connect(both.front, "grpc") as client:

        def ask(index: int) -> None:
            for _ in range(50):
                if index % 2:
                    ask_too_much(client)
                else:
                    array = np.full((1, 50), index, np.float32)
                    np.testing.assert_array_equal(infer(client, "grpc", "wide", array), array)

        in_parallel(6, ask)


@pytest.mark.parametrize("path", OPEN)
def test_open_paths(both: Fronted, path: str) -> None:
    answer = both.front.send("GET", "/v2" + path)
    assert (answer.status, OPEN[path] in answer.body.decode()) == (200, True)
    assert both.front.send("POST", "/v2" + path, b"").status == 405


@pytest.mark.parametrize("path", ["/healthz", "/v2/health/ready", "/v2", "/none", "/v2/logging"])
def test_head_is_get_without_a_body(both: Fronted, path: str) -> None:
    """On one connection, where a body would be taken for the next answer."""
    connection = http.client.HTTPConnection("127.0.0.1", both.front.http, timeout=SECONDS)
    heads = []
    for method in ("GET", "HEAD", "GET"):
        connection.request(method, path, headers={"triton-admin": TOKEN})
        answer = connection.getresponse()
        answer.read()
        kept = {name: value for name, value in answer.getheaders() if name in SAME}
        heads.append((answer.status, kept))
    assert heads[0] == heads[1] == heads[2]
    connection.close()


@pytest.mark.parametrize("path", CLOSED)
def test_closed_paths(both: Fronted, path: str) -> None:
    for method in ("GET", "POST"):
        answer = both.front.send(method, path)
        assert (answer.status, answer.error) == (404, "There is nothing at this address.")
        assert both.front.logged(answer)["upstream"] == ""


@pytest.mark.parametrize("path", ADMIN)
def test_admin_paths(both: Fronted, path: str) -> None:
    for headers in ({}, {"triton-admin": "guess"}, {"triton-admin": ""}):
        answer = both.front.send(ADMIN[path], f"/v2/{path}", headers=headers)
        assert (answer.status, answer.error) == (403, "This needs the admin token.")
        assert both.front.logged(answer)["upstream"] == ""
    headers = {"triton-admin": TOKEN}
    assert both.front.send(ADMIN[path], f"/v2/{path}", headers=headers).status == 200


def test_admin_calls(both: Fronted) -> None:
    with connect(both.front, "grpc") as client:
        calls: list[Callable[..., Any]] = [
            client.get_model_repository_index,
            lambda **more: client.get_model_config("wide", **more),
            client.get_inference_statistics,
            client.get_trace_settings,
            client.get_log_settings,
        ]
        for call in calls:
            for headers in ({}, {"triton-grpc-protocol-triton-admin": "guess"}):
                with pytest.raises(InferenceServerException, match="needs the admin token"):
                    call(headers=headers)
            call(headers={"triton-grpc-protocol-triton-admin": TOKEN})
    assert both.front.call(rpc="CudaSharedMemoryStatus")[0] == grpc.StatusCode.UNIMPLEMENTED


def test_the_log(both: Fronted) -> None:
    answer = both.front.send("GET", "/v2", headers={"X-Request-Id": 'mine"\\'})
    assert len(answer.headers["x-request-id"]) == 32, "one that cannot be is replaced"
    line = both.front.logged(answer)
    assert (line["method"], line["uri"], line["status"]) == ("GET", "/v2", "200")
    assert line["upstream"] == f"127.0.0.1:{both.triton.endpoints.http}"
    with connect(both.front, "grpc") as client:
        infer(client, "grpc", "wide", np.ones((1, 1), np.float32))
        ask_too_much(client)
    until(lambda: both.front.log[-1]["grpc_status"] == "3")
    good, bad = both.front.log[-2:]
    assert good["uri"] == bad["uri"] == f"{SERVICE}/ModelInfer"
    assert (good["grpc_status"], good["refused"]) == ("0", "")
    assert "larger than the data" in bad["refused"]
