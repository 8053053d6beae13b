"""Options, endpoints, installation and the watcher's reaction to signals, without a server."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import __main__, installation, paths
from server.endpoints import Endpoints
from server.errors import PortError, ServerError
from server.launch import TritonServer
from server.settings import Settings


def test_defaults() -> None:
    assert Endpoints.from_environment({}) == Endpoints("127.0.0.1", 8000, 8001, 8002, 8003)


def test_environment_overrides() -> None:
    variables = {"HOST": "::1", "HTTP_PORT": "9000", "METRICS_PORT": "9002"}
    endpoints = Endpoints.from_environment(variables)
    assert endpoints == Endpoints("::1", 9000, 8001, 9002)
    assert endpoints.http_url == "[::1]:9000"


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "65536", "8000.0", "²", "9" * 5000, "1\n"])
def test_port_that_is_none(value: str) -> None:
    with pytest.raises(PortError, match=r"^GRPC_PORT must be a port number"):
        Endpoints.from_environment({"GRPC_PORT": value})


def test_all_of_tritons_listen_on_the_host() -> None:
    options = Endpoints("10.0.0.1", 1, 2, 3).options()
    assert [option for option in options if "address" in option] == [
        "--http-address=10.0.0.1",
        "--grpc-address=10.0.0.1",
        "--metrics-address=10.0.0.1",
    ]
    assert {"--http-port=1", "--grpc-port=2", "--metrics-port=3"} <= set(options)


def test_an_address_of_ipv6_is_written_as_each_of_them_wants_it() -> None:
    assert [option for option in Endpoints("::1", 1, 2, 3).options() if "address" in option] == [
        "--http-address=ipv6:::1",
        "--grpc-address=[::1]",
        "--metrics-address=ipv6:::1",
    ]


@pytest.mark.parametrize(
    ("host", "number"),
    [
        ("localhost", "127.0.0.1"),
        ("LOCALHOST", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0::1", "::1"),
        ("::", "::"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
def test_a_host_is_looked_up_once(host: str, number: str) -> None:
    assert Endpoints(host).resolved() == Endpoints(number)
    assert TritonServer(Path(), endpoints=Endpoints(host)).endpoints.host == number


@pytest.mark.parametrize(
    "host", ["no.such.host.invalid", "127.0.0.1:8000", "http://localhost", "a b", "x" * 70, "ä..b"]
)
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises(PortError, match=f"^HOST={host} is no address of this machine: .+"):
        TritonServer(Path(), endpoints=Endpoints(host))


def test_an_address_of_one_network_only() -> None:
    with pytest.raises(PortError, match=r"^HOST=fe80::1%lo holds for one network only"):
        Endpoints("fe80::1%lo").resolved()


@pytest.mark.parametrize("host", ["255.255.255.255", "224.0.0.1", "ff02::1", "::ffff:224.0.0.1"])
def test_an_address_of_many_machines(host: str) -> None:
    with pytest.raises(PortError, match=f"^HOST={host} is no machine's own address"):
        Endpoints(host).resolved()


def test_an_empty_host_is_none() -> None:
    assert Endpoints.from_environment({"HOST": ""}).host == "127.0.0.1"


def test_names_that_a_shell_leaves_as_they_are() -> None:
    """bash itself says which: in front, within, and at the end of a word."""
    plain = [chr(code) for code in range(1, 256) if not paths.is_odd(chr(code))]
    assert {"a", "Z", "5", "-", "_", ".", ":", ",", "+", "@", "%", "ä"} <= {*plain}
    words = [f"/tmp/{word}" for char in plain for word in (char + "a", f"a{char}a", f"a{char}")]
    said = subprocess.run(
        ["bash", "-c", "printf '%s\\n' " + " ".join(words)], capture_output=True, check=True
    )
    assert said.stdout.decode().split("\n")[:-1] == words


@pytest.mark.parametrize("name", ["my models", "a$(b)", "`b`", "it's", 'a"b', "a;b", "a*", "a\nb"])
def test_other_names_get_a_link(tmp_path: Path, name: str) -> None:
    link = tmp_path / "link"
    assert paths.plain(tmp_path / name, link) == link
    (tmp_path / name).mkdir()
    assert link.resolve() == tmp_path / name
    assert paths.plain(tmp_path, link) == tmp_path
    assert paths.plain_folder(tmp_path / name) == Path("/tmp")
    assert paths.plain_folder(tmp_path) == tmp_path


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


def test_quantiles_of_latency_unless_told_otherwise() -> None:
    assert "--metrics-config=summary_latencies=true" in Settings(Path("models")).arguments("p")
    off = "--metrics-config=summary_latencies=false"
    options = Settings(Path("models"), options=[off]).arguments("p")
    assert [each for each in options if "summary_latencies" in each] == [off]


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
