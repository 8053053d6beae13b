"""`python -m server`, and tritonserver below it, as users and operators treat them: how it starts,
and every end that it can have."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from server.endpoints import Endpoints
from server.errors import ServerError
from server.process.installation import PROJECT
from server.process.run import SEGMENTS, remove_leftovers
from server.watch.stop_signals import SAME_SIGNAL
from tests.support import repository
from tests.support.calls import in_background
from tests.support.command import (
    Command,
    assert_private,
    command,
    infer,
    variables,
)
from tests.support.processes import until
from tests.support.python_models import ECHO, GATED
from tests.support.serving import Serve, processes_of
from tests.triton.conftest import AddModel

CheckLeft = Callable[[tuple[str, Path]], None]
GONE_SECONDS = 6.0
ANSWER_SECONDS = 60.0


@dataclass
class Gated:
    """A server whose model answers when told to."""

    served: Command
    gate: Path

    def ask(self) -> Future[bool]:
        """A request that is in hand."""
        answer = in_background(self.served.answers)
        until((self.gate / "entered").exists)
        return answer

    def open(self) -> None:
        (self.gate / "open").touch()


@pytest.fixture
def gated(add_model: AddModel, tmp_path: Path) -> Iterator[Gated]:
    """With two ranks of another model."""
    folder = add_model("identity", GATED.format(gate=str(tmp_path)))
    repository.add(folder, "echo", repository.ECHO)
    with command(folder) as served:
        served.wait_ready()
        yield Gated(served, tmp_path)


def test_serves_on_loopback_only(shared: Command) -> None:
    """With an option of tritonserver's handed on, and a link inside the repository."""
    assert shared.infer(4.5) == 4.5
    assert_private(shared.run[0])
    with urllib.request.urlopen(f"http://{shared.endpoints.http_url}/v2") as reply:
        assert json.load(reply)["name"] == "mine"
    ports = {shared.endpoints.http, shared.endpoints.grpc, shared.endpoints.metrics}
    listening = {}
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{shared.triton}/net/{table}").read_text().splitlines()[1:]:
            local, _, state = row.split()[1:4]
            address, port = local.split(":")
            if state == "0A" and int(port, 16) in ports:
                listening[int(port, 16)] = address
    assert listening.keys() == ports
    assert set(listening.values()) <= {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_drains(number: int, gated: Gated, check_left: CheckLeft) -> None:
    run, answer = gated.served.run, gated.ask()
    gated.served.process.send_signal(number)
    gated.open()
    status, output = gated.served.end()
    assert (status, answer.result(ANSWER_SECONDS)) == (0, True), output
    check_left(run)


def test_second_signal_ends_it_at_once(gated: Gated, check_left: CheckLeft) -> None:
    run, answer = gated.served.run, gated.ask()
    gated.served.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):  # it drains
        gated.served.process.wait(SAME_SIGNAL + 0.2)
    status, output = gated.served.end(signal.SIGTERM)
    assert (status, answer.result(ANSWER_SECONDS)) == (1, False)
    assert "ended with requests in flight" in output
    check_left(run)


def test_signal_while_loading(add_model: AddModel, tmp_path: Path, check_left: CheckLeft) -> None:
    loading = tmp_path / "loading"
    slow = f"open({str(loading)!r}, 'w'); import time; time.sleep(60)"
    with command(add_model("identity", slow)) as served:
        until(loading.exists)
        run = served.run
        status, output = served.end(signal.SIGINT)
    assert status == 0, output
    check_left(run)


def test_killed_watcher(gated: Gated, check_left: CheckLeft) -> None:
    """tritonserver drains by itself, then the guard removes what the watcher would have."""
    (prefix, folder), answer = gated.served.run, gated.ask()
    gated.served.process.kill()
    gated.served.process.wait()
    remove_leftovers()
    assert folder.exists(), "a run that still drains is not over"
    gated.open()
    assert answer.result(ANSWER_SECONDS)
    until(lambda: not (SEGMENTS / f"{prefix}lock").exists())
    check_left((prefix, folder))


def test_nothing_outlives_a_killed_watcher(gated: Gated) -> None:
    """Not even a request that never ends."""
    (prefix, folder), answer = gated.served.run, gated.ask()
    gated.served.process.kill()
    until(lambda: not processes_of(folder), GONE_SECONDS)
    assert answer.result(ANSWER_SECONDS) is False
    until(lambda: not [*SEGMENTS.glob(f"{prefix}*")] and not folder.exists())


def test_the_next_start_finds_a_clean_house(add_model: AddModel) -> None:
    """After SIGKILL of watcher, guard and tritonserver at once, nobody is left to clean up."""
    with command(add_model("identity", ECHO)) as served:
        served.wait_ready()
        (prefix, folder), triton = served.run, served.triton
        children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children")
        for pid in [served.process.pid, *map(int, children.read_text().split())]:
            os.kill(pid, signal.SIGKILL)
        served.process.wait()
        until(lambda: triton not in processes_of(folder))
        remove_leftovers()
        until(lambda: not processes_of(folder), GONE_SECONDS)
        remove_leftovers()
        assert not [*SEGMENTS.glob(f"{prefix}*")]
        assert not folder.exists()


def test_an_address_of_ipv6(add_model: AddModel) -> None:
    with command(add_model("identity", ECHO), "--host=::1") as served:
        served.wait_ready()
        endpoints = replace(served.endpoints, host="::1").resolved()
        assert infer(endpoints, 1.5) == 1.5
        for url in (f"{endpoints.health_url}/ready", endpoints.metrics_url):
            with urllib.request.urlopen(url) as page:
                assert page.status == 200


def test_paths_with_characters_that_a_shell_reads(
    add_model: AddModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the project, the models and the temporary files."""
    odd = tmp_path / 'it\'s my "$(models)"; a & b * [c] \\ ü'
    (odd / "temporary").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(odd / "temporary"))
    for part in ("server", "backends", "clients"):
        shutil.copytree(PROJECT / part, odd / part)
    folder = add_model("identity", ECHO)
    repository.add(folder, "echo", repository.ECHO)
    with command(folder.rename(odd / "my models"), where=odd) as served:
        served.wait_ready()
        assert served.infer(1.5) == 1.5
        assert served.is_ready
        assert served.model("echo")["ready"]


def server(*options: str, program: Sequence[str] = ("-m", "server"), **more: str) -> str:
    """The one line that it says before it exits with 1."""
    ended = subprocess.run(
        [sys.executable, *program, *options],
        cwd=PROJECT,
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=60.0,
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    return ended.stderr.strip()


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
def test_options_that_cannot_be(options: list[str], sentence: str) -> None:
    assert server(*options).startswith(f"server: {sentence}")


def test_an_option_that_tritonserver_does_not_know(serve: Serve, add_model: AddModel) -> None:
    said = re.escape("unrecognized option '--no-such-option=1'")
    models = add_model("identity", ECHO)
    with pytest.raises(ServerError, match=said), serve(models, options=["--no-such-option=1"]):
        pass


def test_ctrl_c_under_make(add_model: AddModel, tmp_path: Path) -> None:
    """In a terminal Ctrl-C goes to make as well; the server takes it alone, and make succeeds."""
    models = add_model("identity", ECHO)
    serve = f"cd {PROJECT} && exec {sys.executable} -m server --model-repository={models}"
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
from server.process import log_reader

class Thread(threading.Thread):
    def start(self):
        raise RuntimeError("can't start new thread")

assert log_reader.Thread
log_reader.Thread = Thread
sys.exit(__main__.main())
"""


def test_a_start_that_fails_half_way_is_one_sentence(add_model: AddModel) -> None:
    """tritonserver runs already then, and who holds the run's lock is ended with it."""
    models = f"--model-repository={add_model('identity', ECHO)}"
    said = server(models, program=("-c", HALF), **variables(Endpoints.free()))
    assert said == "server: tritonserver cannot be started: can't start new thread"


def test_the_watcher_starts_no_threads_for_numpy() -> None:
    """Where there is none to be had, OpenBLAS interrupts the process; models keep the setting."""
    say = "import os; from server import __main__; print(len(os.listdir('/proc/self/task')))"
    say += "; print(os.environ['OPENBLAS_NUM_THREADS'])"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "3"}
    said = subprocess.check_output([sys.executable, "-c", say], cwd=PROJECT, env=environment)
    assert said.split() == [b"1", b"3"]
