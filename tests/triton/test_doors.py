"""Who may do what: tokens, TLS, and what a repository must not hold."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from server.endpoints import Endpoints
from server.errors import ModelError
from server.process.launch import TritonServer
from server.settings import Tls
from tests.triton.test_server import ECHO, TOKEN, Add, Command, command, infer

CLOSED = {
    "index": ("v2/repository/index", b""),
    "load": ("v2/repository/models/identity/load", b'{"parameters": {"config": "{}"}}'),
    "unload": ("v2/repository/models/identity/unload", b""),
    "config": ("v2/models/identity/config", None),
    "statistics": ("v2/models/identity/stats", None),
    "shared memory": ("v2/systemsharedmemory/status", None),
    "CUDA memory": ("v2/cudasharedmemory/status", None),
    "trace": ("v2/trace/setting", None),
    "logging": ("v2/logging", None),
}
OPEN = {
    "metadata": "v2",
    "live": "v2/health/live",
    "ready": "v2/health/ready",
    "model": "v2/models/identity",
    "model ready": "v2/models/identity/ready",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """A server that these tests leave as it is."""
    from tests.triton.conftest import IDENTITY

    folder = tmp_path_factory.mktemp("doors") / "repository"
    (folder / "identity" / "1").mkdir(parents=True)
    (folder / "identity" / "config.pbtxt").write_text(IDENTITY)
    (folder / "identity" / "1" / "model.py").write_text(ECHO)
    with command(folder) as started:
        started.wait_ready()
        yield started


def ask(url: str, data: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("api", CLOSED)
def test_http_wants_the_token(served: Command, api: str) -> None:
    path, data = CLOSED[api]
    url = f"http://{served.endpoints.http_url}/{path}"
    assert ask(url, data) == 403
    assert ask(url, data, **{"triton-admin": "guess"}) == 403
    if api not in ("load", "unload"):
        assert ask(url, data, **{"triton-admin": TOKEN}) == 200


@pytest.mark.parametrize("path", OPEN.values(), ids=OPEN)
def test_http_that_is_open(served: Command, path: str) -> None:
    assert ask(f"http://{served.endpoints.http_url}/{path}") == 200


def test_grpc_wants_the_token(served: Command) -> None:
    with tritonclient.grpc.InferenceServerClient(served.endpoints.grpc_url) as client:
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
    assert infer(served.endpoints, 1.5) == 1.5


def test_the_token_is_nowhere_to_be_read(served: Command) -> None:
    triton = Path("/proc", str(served.triton))
    children = [*(triton / "task").glob("*/children")]
    stubs = [pid for file in children for pid in file.read_text().split()]
    assert stubs
    for process in [triton, *(Path("/proc", pid) for pid in stubs)]:
        for file in ("cmdline", "environ"):
            assert TOKEN.encode() not in (process / file).read_bytes()
    assert b"triton-admin=****" in (triton / "cmdline").read_bytes()


def test_the_token_on_its_way(add_model: Add, tmp_path: Path) -> None:
    """Only tritonserver's own arguments ever hold it, for a moment; all others never do."""
    secret = secrets.token_hex(16)
    (tmp_path / "token").write_text(secret)
    seen: dict[str, list[float]] = {}
    started = threading.Event()

    def look() -> None:
        while not started.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if secret.encode() in (process / "cmdline").read_bytes():
                        name = (process / "comm").read_text().strip()
                        seen.setdefault(name, []).append(time.monotonic())

    looking = threading.Thread(target=look)
    looking.start()
    file = f"--admin-token-file={tmp_path / 'token'}"
    with command(add_model("identity", ECHO), file) as server:
        server.wait_ready()
        started.set()
        looking.join()
    for times in seen.values():
        print(f"seen for {max(times) - min(times):.3f} s")
    assert seen.keys() <= {"tritonserver"}


def test_the_watchers_pages(served: Command) -> None:
    assert served.health("/status", "guess")[0] == 403
    assert served.health("/status")[0] == 200
    assert served.health("/live", "") == (200, {"live": True})
    assert served.health("/", "")[0] == 404
    assert ask(f"{served.endpoints.health_url}/ready", b"body") == 501, "GET only"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.pem for 127.0.0.1 and client.pem, each with its key, both signed by ca.pem."""
    folder = tmp_path_factory.mktemp("tls")
    subject = {"ca": "/CN=ca", "server": "/CN=server", "client": "/CN=client"}
    for name, cn in subject.items():
        signer = [] if name == "ca" else ["-CA", "ca.pem", "-CAkey", "ca.key"]
        extra = ["-addext", "subjectAltName=IP:127.0.0.1"] if name == "server" else []
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "1", "-subj", cn, "-keyout", f"{name}.key", "-out", f"{name}.pem",
             *signer, *extra],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("mutual", [False, True])
def test_grpc_over_tls(serve: Any, add_model: Add, certificates: Path, mutual: bool) -> None:
    tls = Tls(
        certificates / "server.pem",
        certificates / "server.key",
        certificates / "ca.pem" if mutual else None,
    )
    with serve(add_model("identity", ECHO), tls=tls) as server:

        def is_served(name: str = "") -> bool:
            ca = (certificates / "ca.pem").read_bytes()
            own = (
                [(certificates / f"{name}.{end}").read_bytes() for end in ("key", "pem")]
                if name
                else []
            )
            credentials = grpc.ssl_channel_credentials(ca, *own)
            return _infers(server.endpoints, credentials)

        assert is_served("client")
        assert is_served() is not mutual
        assert not _infers(server.endpoints, None)


def _infers(endpoints: Endpoints, credentials: Any) -> bool:
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


def fifo(model: Path) -> None:
    (model / "config.pbtxt").unlink()
    os.mkfifo(model / "config.pbtxt")


def link_out(model: Path) -> None:
    (model / "1" / "weights").symlink_to("/etc/hostname")


def device(model: Path) -> None:
    (model / "1" / "model.py").unlink()
    (model / "1" / "model.py").symlink_to("/dev/zero")


def dangling(model: Path) -> None:
    (model / "1" / "weights").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (fifo, "bad/config.pbtxt is neither a file nor a folder"),
        (link_out, "bad/1/weights is a link that leads out of the repository; put a copy there"),
        (device, "bad/1/model.py is a link that leads out"),
        (dangling, "bad/1/weights cannot be read: No such file or directory"),
    ],
)
def test_a_model_that_must_not_be_touched(
    serve: Any, add_model: Add, harm: Callable[[Path], None], sentence: str
) -> None:
    folder = add_model("bad", ECHO)
    harm(folder / "bad")
    with pytest.raises(ModelError, match=f"^bad  {sentence}"), serve(folder):
        pass


def test_the_others_are_served(serve: Any, add_model: Add) -> None:
    add_model("bad", ECHO)
    folder = add_model("identity", ECHO)
    fifo(folder / "bad")
    with serve(folder, keep_going=True) as server:
        assert server.log.failures.keys() == {"bad"}
        assert infer(server.endpoints, 1.5) == 1.5


def test_links_inside_are_fine(serve: Any, add_model: Add) -> None:
    folder = add_model("identity", ECHO)
    (folder / "identity" / "1" / "also").symlink_to("model.py")
    with serve(folder) as server:
        assert infer(server.endpoints, 1.5) == 1.5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tls-certificate=none.pem"], "TLS needs both --tls-certificate and --tls-key"),
        (
            ["--tls-certificate=none.pem", "--tls-key=none.key"],
            "--tls-certificate none.pem is not a file that can be read",
        ),
        (["--admin-token-file=none"], "cannot read --admin-token-file none"),
    ],
)
def test_options_that_cannot_be(add_model: Add, options: list[str], sentence: str) -> None:
    folder = add_model("identity", ECHO)
    ended = subprocess.run(
        [sys.executable, "-m", "server", f"--model-repository={folder}", *options],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"server: {sentence}")
    assert ended.stderr.count("\n") == 1


def test_what_is_open_or_off_is_said(add_model: Add) -> None:
    options = ["--host=0.0.0.0", "--model-control-mode=none"]
    with command(add_model("identity", ECHO), *options) as served:
        served.wait_ready()
        assert served.is_ready
        assert "HTTP has no TLS" in served.output
        assert "--model-control-mode was given, so dead stubs stay dead" in served.output


def test_one_server_object_can_be_started_again(add_model: Add) -> None:
    server = TritonServer(add_model("identity", ECHO), endpoints=Endpoints.free())
    for _ in range(2):
        with server:
            assert infer(server.endpoints, 1.5) == 1.5
