"""Options, endpoints, installation and the watcher's reaction to signals, without a server."""

import socket
import subprocess
from pathlib import Path

import pytest

from python_mp.machine.net import Net
from server import shell_names
from server.__main__ import endpoints, parse
from server.endpoints import Endpoints
from server.errors import PortError, ServerError
from server.process import agents_exchange, installation, spanning
from server.process.agents_exchange import AgentsExchange
from server.process.launch import TritonServer
from server.process.ray_placement import RayPlacement


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "65536", "8000.0", "²", "9" * 5000, "1\n"])
def test_port_that_is_none(value: str) -> None:
    with pytest.raises(PortError, match=r"^GRPC_PORT must be a port number"):
        Endpoints.from_environment({"GRPC_PORT": value})


@pytest.mark.parametrize(
    ("host", "number"),
    [
        ("localhost", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0:0::1", "::1"),
    ],
)
def test_a_host_is_looked_up_once(host: str, number: str) -> None:
    assert TritonServer(Path(), endpoints=Endpoints(host)).endpoints == Endpoints(number)


def test_names_that_a_shell_leaves_as_they_are() -> None:
    """bash itself says which: in front, within, and at the end of a word."""
    plain = [chr(code) for code in range(1, 256) if not shell_names.is_odd(chr(code))]
    assert {"a", "Z", "5", "-", "_", ".", ":", ",", "+", "@", "%", "ä"} <= {*plain}
    words = [f"/tmp/{word}" for char in plain for word in (char + "a", f"a{char}a", f"a{char}")]
    said = subprocess.run(
        ["bash", "-c", "printf '%s\\n' " + " ".join(words)], capture_output=True, check=True
    )
    assert said.stdout.decode().split("\n")[:-1] == words


@pytest.mark.parametrize("name", ["my models", "a$(b)", "`b`", "it's", 'a"b', "a;b", "a*", "a\nb"])
def test_other_names_get_a_link(tmp_path: Path, name: str) -> None:
    link = tmp_path / "link"
    assert shell_names.plain(tmp_path / name, link) == link
    (tmp_path / name).mkdir()
    assert link.resolve() == tmp_path / name
    assert shell_names.plain(tmp_path, link) == tmp_path
    assert shell_names.plain_folder(tmp_path / name) == Path("/tmp")
    assert shell_names.plain_folder(tmp_path) == tmp_path


def test_busy_port_names_its_variable() -> None:
    free = Endpoints.free()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        busy = listener.getsockname()[1]
        with pytest.raises(PortError, match=rf"^port {busy} on 127.0.0.1 is in use; .* METRICS_PO"):
            Endpoints(free.host, free.http, free.grpc, busy).check()
    free.check()
    with pytest.raises(PortError, match="HTTP_PORT and GRPC_PORT are both 7"):
        Endpoints("127.0.0.1", 7, 7, 8).check()


def test_the_environment_overrides_defaults() -> None:
    assert Endpoints.from_environment({}) == Endpoints("127.0.0.1", 8000, 8001, 8002, 8003, 8004)
    variables = {"HOST": "::1", "HTTP_PORT": "9000", "METRICS_PORT": "9002"}
    endpoints = Endpoints.from_environment(variables)
    assert endpoints == Endpoints("::1", 9000, 8001, 9002)
    assert endpoints.http_url == "[::1]:9000"
    assert Endpoints("0.0.0.0").grpc_url == "127.0.0.1:8001", "everywhere is reached on loopback"


@pytest.mark.parametrize(
    ("host", "http", "grpc"), [("10.0.0.1", "10.0.0.1", "10.0.0.1"), ("::1", "ipv6:::1", "[::1]")]
)
def test_all_of_tritons_listen_on_the_host(host: str, http: str, grpc: str) -> None:
    options = Endpoints(host, 1, 2, 3).options()
    addresses = [f"--http-address={http}", f"--grpc-address={grpc}", f"--metrics-address={http}"]
    assert {*addresses, "--http-port=1", "--grpc-port=2", "--metrics-port=3"} <= set(options)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        *((host, " is no address of this machine: ") for host in ("a b", "127.0.0.1:8000")),
        ("fe80::1%lo", " holds for one network only"),
        *((host, " is no machine's own address") for host in ("255.255.255.255", "ff02::1")),
    ],
)
def test_a_host_that_is_none(host: str, said: str) -> None:
    with pytest.raises(PortError, match=f"^HOST={host}{said}"):
        TritonServer(Path(), endpoints=Endpoints(host))


def test_what_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError, match="no model repository at"):
        TritonServer(tmp_path / "model_repository").start()
    with pytest.raises(ServerError, match="holds no model"):
        TritonServer(tmp_path).start()
    monkeypatch.setattr(installation, "PROJECT", tmp_path)
    (tmp_path / "model_repository" / "embed").mkdir(parents=True)
    (tmp_path / "model_repository" / "embed" / "config.pbtxt").touch()
    with pytest.raises(ServerError, match="run 'make build'"):
        TritonServer(tmp_path / "model_repository").start()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--agent-host=0.0.0.0"], "hosts need one token of at least 16 characters"),
        (["--agent-token-file=/nowhere"], "No such file"),
        (["--agent-tls-key=/nowhere"], "both --tls-certificate and --tls-key"),
    ],
)
def test_agents_that_could_not_be_let_in_end_the_start(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENT_TOKEN", raising=False)
    ours, _ = parse([*options, f"--agent-port={Endpoints.free().agents}"])
    more = endpoints(ours), agents_exchange.options(ours), Net(), print
    with pytest.raises(ServerError, match=f"agents cannot be let in: .*{said}"):
        AgentsExchange("name", *more).__enter__()


def test_only_models_with_hosts_need_agents(tmp_path: Path) -> None:
    for text, need, of_ray in (
        ("", False, 0),
        (spanning_config(hosts="1"), False, 0),
        (spanning_config(hosts="2"), True, 0),
        (spanning_config(hosts="4", placement="none"), False, 0),
        (spanning_config(hosts="4", placement="ray"), True, 3),
        (spanning_config(hosts="many", placement="ray"), True, 0),
        ("hosts {", False, 0),
    ):
        write_model(tmp_path, "model", text)
        assert bool(spanning.models(tmp_path)) is need
        assert spanning.placed_by_ray(tmp_path) == of_ray
    write_model(tmp_path, "model", spanning_config(hosts="3", placement="ray"))
    write_model(tmp_path, "larger", spanning_config(hosts="4", placement="ray"))
    assert spanning.placed_by_ray(tmp_path) == 3


def spanning_config(**said: str) -> str:
    entry = 'parameters { key: "%s" value { string_value: "%s" } }'
    return "\n".join(entry % each for each in said.items())


def write_model(folder: Path, name: str, config: str) -> None:
    (folder / name / "1").mkdir(parents=True, exist_ok=True)
    (folder / name / "config.pbtxt").write_text(config)


def test_a_server_without_ray_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ours, _ = parse([])
    with pytest.raises(ServerError, match="placement 'ray' needs Ray: pip install"):
        RayPlacement(1, ours, Endpoints(), Net(), print).__enter__()


def test_options_that_no_agent_knows_are_refused_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, _ = parse(["--ray-agent-options=--no-such-option=1"])
    with pytest.raises(SystemExit):
        RayPlacement(1, ours, Endpoints(), Net(), print)
    assert "unrecognized arguments: --no-such-option=1" in capsys.readouterr().err
