"""`python -m server`, and tritonserver below it, as users and operators treat them."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.control import Control
from server.endpoints import Endpoints
from server.errors import ModelError, ServerError
from server.process.installation import PROJECT
from server.process.run import SEGMENTS, remove_leftovers
from server.watch.watcher import SAME_SIGNAL
from tests.triton import repository

Add = Callable[[str, str], Path]
TOKEN = "known-to-the-tests"
SERVER = ("-m", "server")

ECHO = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(r, "IN").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]) for value in values]
"""
# Says in the folder `gate` that it has a request, and answers when told to.
GATED = """
import pathlib, time
import triton_python_backend_utils as pb_utils

GATE = pathlib.Path({gate!r})


class TritonPythonModel:
    def execute(self, requests):
        (GATE / "entered").touch()
        while not (GATE / "open").exists():
            time.sleep(0.01)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", tensor.as_numpy())])
            for tensor in (pb_utils.get_input_tensor_by_name(r, "IN") for r in requests)
        ]
"""
BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the weights are missing")
"""


def infer(endpoints: Endpoints, value: float, model: str = "identity") -> float:
    tensor = {"name": "IN", "shape": [1, 1], "datatype": "FP32", "data": [value]}
    url = f"http://{endpoints.http_url}/v2/models/{model}/infer"
    with urllib.request.urlopen(url, json.dumps({"inputs": [tensor]}).encode()) as reply:
        return float(json.load(reply)["outputs"][0]["data"][0])


def wait_until(happened: Callable[[], Any], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


class Command:
    """`python -m server` as a child process."""

    def __init__(
        self,
        repository: Path,
        *options: str,
        program: Sequence[str] = SERVER,
        where: Path = PROJECT,
    ) -> None:
        self.endpoints = Endpoints.free()
        self.control = Control(self.endpoints, TOKEN)
        self.process = subprocess.Popen(
            [sys.executable, *program, f"--model-repository={repository}", *options],
            cwd=where,
            env={**os.environ, **variables(self.endpoints), "ADMIN_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def wait_ready(self) -> None:
        self.wait_for("Ctrl-C drains")

    def wait_for(self, text: str) -> str:
        """The next line that it prints with this text in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        pytest.fail(f"it ended:\n{self.output}")

    def end(self) -> tuple[int, str]:
        """Wait for its end: exit status, output."""
        stdout = self.process.stdout
        assert stdout is not None
        if not stdout.closed:
            self.output += self.process.communicate()[0]
        return self.process.returncode, self.output

    def health(self, path: str = "/ready", secret: str = TOKEN) -> tuple[int, dict[str, Any]]:
        """Status and body of a page of the watcher's."""
        url = self.endpoints.health_url + path
        request = urllib.request.Request(url, headers={"triton-admin": secret})
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def metrics(self) -> str:
        """The watcher's own."""
        with urllib.request.urlopen(f"{self.endpoints.health_url}/metrics", timeout=5) as page:
            return str(page.read().decode())

    @property
    def is_ready(self) -> bool:
        """Whether the watcher says that all is well."""
        return self.health()[0] == 200

    def model(self, name: str) -> dict[str, Any]:
        """What /status says of a model."""
        return dict(self.health("/status")[1]["models"].get(name, {}))

    @property
    def triton(self) -> int:
        """tritonserver's process id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    @property
    def run(self) -> tuple[str, Path]:
        """The run's prefix of segments and its folder."""
        environment = Path(f"/proc/{self.triton}/environ").read_bytes().decode()
        folder = re.search(r"PYTHON_MP_RUNTIME_DIR=([^\0]+)", environment)
        assert folder is not None
        return f"{Path(folder[1]).name}_", Path(folder[1])


def variables(endpoints: Endpoints) -> dict[str, str]:
    return {
        "HTTP_PORT": str(endpoints.http),
        "GRPC_PORT": str(endpoints.grpc),
        "METRICS_PORT": str(endpoints.metrics),
        "HEALTH_PORT": str(endpoints.health),
    }


@contextmanager
def command(
    repository: Path, *options: str, program: Sequence[str] = SERVER, where: Path = PROJECT
) -> Iterator[Command]:
    started = Command(repository, *options, program=program, where=where)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.end()


def test_serves_and_leaves_nothing(serve: Any, add_model: Add) -> None:
    with serve(add_model("identity", ECHO)) as server:
        assert infer(server.endpoints, 4.5) == 4.5
        assert server.log.ready == {"identity"}
        segments = list(SEGMENTS.glob(f"{server.run.prefix}*"))
        assert len(segments) == 2  # the lock and the stub's
        for path in [*segments, server.run.folder]:
            assert path.stat().st_mode & 0o077 == 0, "others can read what clients send"


def test_listens_on_loopback_only(serve: Any, add_model: Add) -> None:
    with serve(add_model("identity", ECHO)) as server:
        ports = {server.endpoints.http, server.endpoints.grpc, server.endpoints.metrics}
        listening = {}
        for table in ("tcp", "tcp6"):
            for row in Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]:
                local, _, state = row.split()[1:4]
                address, port = local.split(":")
                if state == "0A" and int(port, 16) in ports:
                    listening[int(port, 16)] = address
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert listening.keys() == ports
    assert set(listening.values()) <= loopback


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_drains(
    number: int, add_model: Add, tmp_path: Path, check_left: Callable[..., None]
) -> None:
    repository = add_model("identity", GATED.format(gate=str(tmp_path)))
    with command(repository) as served:
        served.wait_ready()
        run, answers = served.run, []
        client = threading.Thread(target=lambda: answers.append(infer(served.endpoints, 2.5)))
        client.start()
        wait_until((tmp_path / "entered").exists)
        served.process.send_signal(number)
        (tmp_path / "open").touch()
        status, output = served.end()
        client.join()
    assert (status, answers) == (0, [2.5]), output
    check_left(run)


def test_second_signal_ends_it_at_once(
    add_model: Add, tmp_path: Path, check_left: Callable[..., None]
) -> None:
    def ask() -> None:
        with pytest.raises(OSError, match=r"Remote end closed|reset"):
            infer(served.endpoints, 1.0)

    with command(add_model("identity", GATED.format(gate=str(tmp_path)))) as served:
        served.wait_ready()
        run = served.run
        client = threading.Thread(target=ask)
        client.start()
        wait_until((tmp_path / "entered").exists)
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):  # it drains
            served.process.wait(SAME_SIGNAL + 0.2)
        served.process.send_signal(signal.SIGTERM)
        status, output = served.end()
        client.join()
    assert status == 1
    assert "ended with requests in flight" in output
    check_left(run)


def test_signal_while_loading(
    add_model: Add, tmp_path: Path, check_left: Callable[..., None]
) -> None:
    loading = tmp_path / "loading"
    slow = f"open({str(loading)!r}, 'w'); import time; time.sleep(60)"
    with command(add_model("identity", slow)) as served:
        wait_until(loading.exists)
        run = served.run
        served.process.send_signal(signal.SIGINT)
        status, output = served.end()
    assert status == 0, output
    check_left(run)


def test_killed_watcher(add_model: Add, tmp_path: Path, check_left: Callable[..., None]) -> None:
    """tritonserver drains by itself, then the guard removes what the watcher would have."""
    with command(add_model("identity", GATED.format(gate=str(tmp_path)))) as served:
        served.wait_ready()
        (prefix, folder), answers = served.run, []
        client = threading.Thread(target=lambda: answers.append(infer(served.endpoints, 2.5)))
        client.start()
        wait_until((tmp_path / "entered").exists)
        served.process.kill()
        served.process.wait()
        remove_leftovers()
        assert folder.exists(), "a run that still drains is not over"
        (tmp_path / "open").touch()
        client.join()

    wait_until(lambda: not (SEGMENTS / f"{prefix}lock").exists())
    assert answers == [2.5]
    check_left((prefix, folder))


def test_everything_killed(add_model: Add, check_left: Callable[..., None]) -> None:
    with command(add_model("identity", ECHO)) as served:
        served.wait_ready()
        (prefix, folder), triton = served.run, served.triton
        served.process.kill()
        os.kill(triton, signal.SIGKILL)
        wait_until(lambda: not (SEGMENTS / f"{prefix}lock").exists())
    check_left((prefix, folder))


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_hosts_other_than_a_number_of_ipv4(host: str, add_model: Add) -> None:
    with command(add_model("identity", ECHO), f"--host={host}") as served:
        served.wait_ready()
        endpoints = replace(served.endpoints, host=host).resolved()
        assert infer(endpoints, 1.5) == 1.5
        with urllib.request.urlopen(f"{endpoints.health_url}/ready") as page:
            assert page.status == 200
        with urllib.request.urlopen(endpoints.metrics_url) as page:
            assert page.status == 200


ODD = 'it\'s my "$(models)"; a & b * [c] \\ ü'


@pytest.mark.parametrize("kind", ["models", "project", "temporary"])
def test_paths_with_characters_that_a_shell_reads(
    kind: str, add_model: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / ODD
    odd.mkdir()
    folder = add_model("identity", ECHO)
    repository.add(folder, "echo", repository.ECHO)
    where = PROJECT
    if kind == "models":
        folder = folder.rename(odd / "models")
    elif kind == "temporary":
        monkeypatch.setenv("TMPDIR", str(odd))
    else:
        where = odd
        for part in ("server", "backends", "clients"):
            shutil.copytree(PROJECT / part, odd / part)
    with command(folder, where=where) as served:
        served.wait_ready()
        assert infer(served.endpoints, 1.5) == 1.5
        assert served.is_ready
        assert served.model("echo")["ready"]


STUCK = """
import sys
from server import __main__, paths, progress
progress.STUCK_SECONDS = 2.0
paths.is_odd = lambda _: False
sys.exit(__main__.main())
"""


def test_stubs_that_abort_end_the_start(add_model: Add) -> None:
    """As they would for such a path, were it not for the link. Triton waits for them for ever."""
    folder = add_model("identity", ECHO)
    folder = folder.rename(folder.with_name("my models"))
    with command(folder, program=("-c", STUCK)) as served:
        wait_until(lambda: served.process.poll() is not None, 60)
        status, output = served.end()
    assert status == 1
    assert "server: stubs of identity aborted while they started" in output


def test_a_start_has_the_limit_that_it_is_given(add_model: Add) -> None:
    sleeps = add_model("identity", "import time; time.sleep(60)")
    with command(sleeps, "--load-timeout-secs=3") as served:
        wait_until(lambda: served.process.poll() is not None, 30)
        status, output = served.end()
    assert status == 1
    assert "server: the server was not ready within 3 s (--load-timeout-secs)" in output


def test_port_in_use(serve: Any, add_model: Add) -> None:
    repository = add_model("identity", ECHO)
    with serve(repository) as server:
        environment = {**os.environ, **variables(server.endpoints)}
        ended = subprocess.run(
            [sys.executable, "-m", "server", f"--model-repository={repository}"],
            cwd=PROJECT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == (
        f"server: port {server.endpoints.http} on 127.0.0.1 is in use;"
        " choose another one with HTTP_PORT=...\n"
    )


def test_broken_model_is_named_with_its_reason(serve: Any, add_model: Add) -> None:
    add_model("identity", ECHO)
    with (
        pytest.raises(ModelError, match=r"^broken  ValueError: the weights are missing \(1/model"),
        serve(add_model("broken", BROKEN)),
    ):
        pass


def test_keep_going_serves_the_others(serve: Any, add_model: Add) -> None:
    add_model("broken", BROKEN)
    with serve(add_model("identity", ECHO), keep_going=True) as server:
        assert infer(server.endpoints, 1.5) == 1.5
        assert list(server.log.failures) == ["broken"]


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--no-such-option=1", "unrecognized option '--no-such-option=1'"),
        ("--host-policy=x", "--host-policy option format is"),
    ],
)
def test_bad_option(option: str, complaint: str, serve: Any, add_model: Add) -> None:
    with (
        pytest.raises(ServerError, match=re.escape(complaint)) as raised,
        serve(add_model("identity", ECHO), options=[option]),
    ):
        pass
    assert "\n" not in str(raised.value)


def test_options_reach_tritonserver(serve: Any, add_model: Add) -> None:
    options = ["--http-restricted-api=model-repository:token=secret", "--id=mine"]
    with (
        serve(add_model("identity", ECHO), options=options) as server,
        urllib.request.urlopen(f"http://{server.endpoints.http_url}/v2") as reply,
    ):
        assert json.load(reply)["name"] == "mine"


def test_ready_without_http(serve: Any, add_model: Add) -> None:
    with serve(add_model("identity", ECHO), options=["--allow-http=false"]) as server:
        assert server.log.ready == {"identity"}


def test_ctrl_c_under_make(add_model: Add, tmp_path: Path) -> None:
    """In a terminal Ctrl-C goes to make as well; the server takes it alone, and make succeeds."""
    repository = add_model("identity", ECHO)
    serve = f"cd {PROJECT} && exec {sys.executable} -m server --model-repository={repository}"
    (tmp_path / "Makefile").write_text(f"serve:\n\t@{serve}\n")
    environment = {**os.environ, **variables(Endpoints.free())}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("make", ["make", "-C", str(tmp_path), "serve"], environment)
    output = b""
    while b"Ctrl-C" not in output:
        output += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


HALF = """
import sys, threading
from server import __main__

class Thread(threading.Thread):
    def start(self):
        raise RuntimeError("can't start new thread")

__main__.TritonServer.start.__globals__["Thread"] = Thread
sys.exit(__main__.main())
"""


def test_a_start_that_fails_half_way_is_one_sentence(add_model: Add) -> None:
    """tritonserver runs already then, and who holds the run's lock is ended with it."""
    ended = subprocess.run(
        [sys.executable, "-c", HALF, f"--model-repository={add_model('identity', ECHO)}"],
        cwd=PROJECT, env=os.environ | variables(Endpoints.free()), capture_output=True, text=True,
    )  # fmt: skip
    assert ended.stderr == "server: tritonserver cannot be started: can't start new thread\n"
    assert ended.returncode == 1


def test_the_watcher_starts_no_threads_for_numpy() -> None:
    """Where there is none to be had, OpenBLAS interrupts the process; models keep the setting."""
    say = """if True:
        import os
        from server import __main__
        print(len(os.listdir("/proc/self/task")), os.environ["OPENBLAS_NUM_THREADS"])
    """
    ended = subprocess.run(
        [sys.executable, "-c", say], cwd=PROJECT, env=os.environ | {"OPENBLAS_NUM_THREADS": "3"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.split() == ["1", "3"]
