"""Options, endpoints, installation and the watcher's reaction to signals, without a server."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server import __main__, installation
from server.endpoints import Endpoints
from server.errors import PortError, ServerError
from server.launch import TritonServer
from server.log import Log
from server.settings import Settings
from server.watcher import SAME_SIGNAL, Watcher


def test_defaults() -> None:
    assert Endpoints.from_environment({}) == Endpoints("127.0.0.1", 8000, 8001, 8002)


def test_environment_overrides() -> None:
    variables = {"HOST": "::1", "HTTP_PORT": "9000", "METRICS_PORT": "9002"}
    endpoints = Endpoints.from_environment(variables)
    assert endpoints == Endpoints("::1", 9000, 8001, 9002)
    assert endpoints.http_url == "[::1]:9000"


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "65536", "8000.0", "²"])
def test_port_that_is_none(value: str) -> None:
    with pytest.raises(PortError, match=r"^GRPC_PORT must be a port number"):
        Endpoints.from_environment({"GRPC_PORT": value})


def test_all_three_listen_on_the_host() -> None:
    options = Endpoints("10.0.0.1", 1, 2, 3).options()
    assert [option for option in options if "address" in option] == [
        "--http-address=10.0.0.1",
        "--grpc-address=10.0.0.1",
        "--metrics-address=10.0.0.1",
    ]
    assert {"--http-port=1", "--grpc-port=2", "--metrics-port=3"} <= set(options)


def test_everywhere_is_reached_on_loopback() -> None:
    assert Endpoints("0.0.0.0").grpc_url == "127.0.0.1:8001"


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_busy_port_names_its_variable(busy: int) -> None:
    free = Endpoints.free()
    with pytest.raises(PortError, match=rf"^port {busy} on 127.0.0.1 is in use; .* METRICS_PORT="):
        Endpoints(free.host, free.http, free.grpc, busy).check()
    free.check()


def test_ports_must_differ() -> None:
    with pytest.raises(PortError, match="HTTP_PORT and GRPC_PORT are both 7"):
        Endpoints("127.0.0.1", 7, 7, 8).check()


def test_further_options_go_to_tritonserver() -> None:
    ours, theirs = __main__.parse(["--log-verbose", "1", "--demo", "--id=me", "--http-port=9"])
    assert theirs == ["--log-verbose", "1", "--id=me"]
    assert ours.demo
    assert __main__.endpoints(ours).http == 9


def test_options_follow_from_settings() -> None:
    arguments = Settings(Path("models"), options=["--id=me"], exit_timeout=7).arguments("mine_")
    assert "--model-repository=models" in arguments
    assert "--exit-timeout-secs=7" in arguments
    assert "--backend-config=python_mp,shm-region-prefix-name=mine_" in arguments
    assert "--disable-auto-complete-config" in arguments
    assert "--exit-on-error=false" not in arguments
    assert arguments[-1] == "--id=me", "the user's options come last"


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no model repository at"):
        TritonServer(tmp_path / "none").start()
    with pytest.raises(ServerError, match="holds no model"):
        TritonServer(tmp_path).start()


def test_unbuilt_models_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "PROJECT", tmp_path)
    model = tmp_path / "model_repository" / "embed"
    model.mkdir(parents=True)
    (model / "config.pbtxt").touch()
    with pytest.raises(ServerError, match="run 'make build'"):
        TritonServer(model.parent).start()


def test_backends_are_linked_with_this_pythons_stub(tmp_path: Path) -> None:
    found = installation.find()
    found.assemble_backends(tmp_path / "backends")
    python = tmp_path / "backends" / "python"
    stub = python / "triton_python_backend_stub"
    assert stub.read_bytes() == found.stub.read_bytes()
    assert os.access(stub, os.X_OK)
    assert (python / "libtriton_python.so").is_file()
    assert (tmp_path / "backends" / "python_mp").is_dir()


def test_environment_puts_this_python_first() -> None:
    environment = installation.find().environment({"PATH": "/bin", "LD_LIBRARY_PATH": "/mine"})
    assert environment["PATH"].endswith(":/bin")
    assert Path(environment["PATH"].split(":")[0], "python").exists()
    assert environment["LD_LIBRARY_PATH"].endswith(":/mine")
    assert all(Path(path).is_dir() for path in environment["LD_LIBRARY_PATH"].split(":")[:-1])


class FakeServer:
    """Runs until it is told to stop; `during` is what happens while it is waited for."""

    settings = Settings(Path())

    def __init__(self, during: Callable[[], None] = lambda: None, returncode: int = 0) -> None:
        self.stops: list[bool] = []
        self.during = during
        self.returncode = returncode
        self.endpoints = Endpoints()
        self.log = Log(print)

    def start(self) -> None: ...

    def wait_ready(self) -> None: ...

    def request_stop(self, *, at_once: bool = False) -> None:
        self.stops.append(at_once)

    def wait(self) -> int:
        self.during()
        return self.returncode


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back the signal handlers that a watcher replaces."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def watch(server: Any) -> list[str]:
    said: list[str] = []
    Watcher(server, said.append).run()
    return said


def signals(*numbers: int) -> Callable[[], None]:
    return lambda: [signal.raise_signal(number) for number in numbers] and None


@pytest.mark.usefixtures("handlers")
class TestWatcher:
    def test_one_signal_drains(self) -> None:
        server = FakeServer(signals(signal.SIGTERM))
        assert watch(server)[-1] == "drained"
        assert server.stops == [False]

    def test_the_same_wish_twice_is_one(self) -> None:
        server = FakeServer(signals(signal.SIGTERM, signal.SIGTERM))
        watch(server)
        assert server.stops == [False]

    def test_second_signal_kills(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([0.0, 0.0, 1.0, 1.0 + 2 * SAME_SIGNAL])
        monkeypatch.setattr("server.watcher.time.monotonic", lambda: next(clock))
        server = FakeServer(signals(signal.SIGINT, signal.SIGINT), returncode=-9)
        with pytest.raises(ServerError, match="ended with requests in flight"):
            watch(server)
        assert server.stops == [False, True]

    def test_unfinished_drain_is_an_error(self) -> None:
        server = FakeServer(signals(signal.SIGTERM), returncode=1)
        with pytest.raises(ServerError, match="the 30 s of --exit-timeout-secs"):
            watch(server)

    def test_server_that_ends_by_itself_is_an_error(self) -> None:
        with pytest.raises(ServerError, match="tritonserver was ended by SIGSEGV"):
            watch(FakeServer(returncode=-11))
