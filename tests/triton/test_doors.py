"""Who may do what: tokens and TLS."""

from __future__ import annotations

import secrets
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from server.endpoints import Endpoints
from server.settings import Tls
from tests.support.command import TOKEN, Command, command
from tests.support.python_models import ECHO
from tests.support.serving import Serve
from tests.triton.conftest import AddModel

CLOSED = {
    "index": ("v2/repository/index", b""),
    "load": ("v2/repository/models/identity/load", b'{"parameters": {"config": "{}"}}'),
    "unload": ("v2/repository/models/identity/unload", b""),
    "config": ("v2/models/identity/config", None),
    "statistics": ("v2/models/identity/stats", None),
    "CUDA memory": ("v2/cudasharedmemory/status", None),
    "trace": ("v2/trace/setting", None),
    "logging": ("v2/logging", None),
}


def ask(url: str, data: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("api", CLOSED)
def test_http_wants_the_token(shared: Command, api: str) -> None:
    path, data = CLOSED[api]
    url = f"http://{shared.endpoints.http_url}/{path}"
    assert ask(url, data) == 403
    assert ask(url, data, **{"triton-admin": "guess"}) == 403
    if api not in ("load", "unload"):
        assert ask(url, data, **{"triton-admin": TOKEN}) == 200


def test_grpc_wants_the_token(shared: Command) -> None:
    with tritonclient.grpc.InferenceServerClient(shared.endpoints.grpc_url) as client:
        calls: list[Callable[..., Any]] = [
            client.get_model_repository_index,
            lambda **more: client.load_model("identity", **more),
            lambda **more: client.unload_model("identity", **more),
            lambda **more: client.get_model_config("identity", **more),
            client.get_inference_statistics,
            client.get_system_shared_memory_status,
            client.get_trace_settings,
            client.get_log_settings,
        ]
        for call in calls:
            for headers in ({}, {"triton-grpc-protocol-triton-admin": "guess"}):
                with pytest.raises(InferenceServerException, match="restricted"):
                    call(headers=headers)
        headers = {"triton-grpc-protocol-triton-admin": TOKEN}
        index = client.get_model_repository_index(headers=headers)
        assert [model.name for model in index.models] == ["identity"]
        assert client.is_server_ready()
        assert client.get_model_metadata("identity").name == "identity"
    assert shared.answers()


def test_the_token_is_nowhere_to_be_read(shared: Command) -> None:
    triton = Path("/proc", str(shared.triton))
    stubs = [Path("/proc", str(pid)) for pid in shared.stubs("identity").values()]
    assert stubs
    for process in [triton, *stubs]:
        for file in ("cmdline", "environ"):
            assert TOKEN.encode() not in (process / file).read_bytes()
    assert b"triton-admin=****" in (triton / "cmdline").read_bytes()


def test_the_token_on_its_way_and_what_is_said(add_model: AddModel, tmp_path: Path) -> None:
    """Only tritonserver's own arguments ever hold it, for a moment; all others never do."""
    secret = secrets.token_hex(16)
    (tmp_path / "token").write_text(secret)
    seen: set[str] = set()
    started = threading.Event()

    def look() -> None:
        while not started.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if secret.encode() in (process / "cmdline").read_bytes():
                        seen.add((process / "comm").read_text().strip())

    looking = threading.Thread(target=look)
    looking.start()
    options = ["--host=0.0.0.0", "--model-control-mode=none"]
    file = f"--admin-token-file={tmp_path / 'token'}"
    with command(add_model("identity", ECHO), *options, file) as served:
        served.wait_ready()
        started.set()
        looking.join()
        assert served.is_ready
    assert seen <= {"tritonserver"}
    assert "HTTP has no TLS" in served.output
    assert "--model-control-mode was given, so dead stubs stay dead" in served.output


def test_the_watchers_pages(shared: Command) -> None:
    assert shared.health("/status", "guess")[0] == 403
    assert shared.health("/status")[0] == 200
    assert shared.health("/live", "") == (200, {"live": True})
    assert shared.health("/", "")[0] == 404
    assert ask(f"{shared.endpoints.health_url}/ready", b"body") == 501, "GET only"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.pem for 127.0.0.1 and client.pem, each with its key, both signed by ca.pem."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ca", "server", "client"):
        signer = [] if name == "ca" else ["-CA", "ca.pem", "-CAkey", "ca.key"]
        extra = ["-addext", "subjectAltName=IP:127.0.0.1"] if name == "server" else []
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "1", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
             "-out", f"{name}.pem", *signer, *extra],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("mutual", [False, True])
def test_grpc_over_tls(serve: Serve, add_model: AddModel, certificates: Path, mutual: bool) -> None:
    """It is ready without HTTP, too."""
    pair = (certificates / "server.pem", certificates / "server.key")
    tls = Tls(*pair, certificates / "ca.pem" if mutual else None)
    models = add_model("identity", ECHO)
    with serve(models, tls=tls, options=["--allow-http=false"]) as server:

        def is_served(*name: str) -> bool:
            files = ["ca.pem", *(f"{n}.{end}" for n in name for end in ("key", "pem"))]
            pems = [(certificates / file).read_bytes() for file in files]
            return infers(server.endpoints, grpc.ssl_channel_credentials(*pems))

        assert is_served("client")
        assert is_served() is not mutual
        assert not infers(server.endpoints, None)


def infers(endpoints: Endpoints, credentials: Any) -> bool:
    row = np.array([[1.5]], np.float32)
    tensor = tritonclient.grpc.InferInput("IN", [1, 1], "FP32")
    tensor.set_data_from_numpy(row)
    with tritonclient.grpc.InferenceServerClient(
        endpoints.grpc_url, ssl=credentials is not None, creds=credentials
    ) as client:
        try:
            return bool(client.infer("identity", [tensor], client_timeout=5).as_numpy("OUT") == row)
        except InferenceServerException:
            return False
