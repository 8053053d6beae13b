"""The way of one `embed` request, as docs/architecture.md lists it, from a trace of a real one.

    python -m docs.request_path    # writes the table anew

A real server runs with `docs/tracing` in each of its processes: stubs, forkserver, ranks. One text
is embedded while all calls are written down. What is shown: the threads that had the request in
hand, in the order in which it came to them; of each the public functions by their first call.
"""

import ast
import json
import site
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import tritonclient.grpc as grpc

from server.endpoints import Endpoints
from server.process.launch import TritonServer

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "architecture.md"
BEGIN, END = "<!-- request path: written by docs/request_path.py -->\n", "<!-- end -->"
ONLY_EMBED = ("--model-control-mode=explicit", "--load-model=embed")

IN_HAND = {"execute", "write_outputs", "deliver"}
"""Who calls one of these has the request: a stub, the rank that answers, the answering thread."""
ASIDE = (
    *(
        "python_mp/machine/",
        "front/metrics.py",
        "triton/metric_sink.py",
        "front/status.py",
        "front/refusing.py",
        "front/outage.py",
        "supervise/",
    ),
    *(
        "model/size.py",
        "model/parameters.py",
        "model/config.py",
        "model/config_json.py",
        "sharding/numerics.py",
    ),
)
"""Measures and limits, what refuses, what watches: asked on the way, and not the way."""
BOOKS = {
    *("take_landed", "release", "of_batch", "waited_ns", "wait_seconds", "operations"),
    *("output_nbytes", "answer_nbytes", "check_nbytes", "check_output"),
}


class Call(NamedTuple):
    time: int
    pid: int
    thread: str
    name: str
    command: str
    stack: list[tuple[str, str]]
    """File and qualified name of each function, innermost first."""

    @property
    def function(self) -> str:
        return self.stack[0][1].rpartition(".")[2]

    def process(self, file: str) -> str:
        """As the table calls it. A forked rank's stack begins with the forkserver's functions."""
        if self.name.startswith("rank "):
            return "forkserver" if file.endswith("/forkserver.py") else self.name.split(".")[0]
        words = self.command.replace("\0", "/").split("/")
        stub = f"stub of `{next(word for word in words if word.startswith('embed_'))}`"
        return stub if self.thread == "MainThread" else f"{stub}, supervisor's thread"


class Step(NamedTuple):
    process: str
    file: str
    name: str

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]


def trace() -> list[Call]:
    """The calls during one request, after others that have warmed everything."""
    with tempfile.TemporaryDirectory() as folder:
        with _traced(Path(folder)) as environment, _server(environment) as server:
            _embed(server, " ".join(["word"] * 400))  # The longer batch before is answered by the
            (Path(folder) / "on").touch()  # supervisor's thread, and so this one's answer is.
            _embed(server, "How do I reset my password?")
            (Path(folder) / "on").unlink()
        lines = (Path(folder) / "calls").read_text().splitlines()
    calls = [Call(*json.loads(line)) for line in lines]
    return sorted(calls)


@contextmanager
def _traced(folder: Path) -> Iterator[dict[str, str]]:
    """An environment of Python's that has the tracer in it. A stub finds its packages by PATH, and
    the server puts its own interpreter's folder there."""
    environment = folder / "environment"
    venv.EnvBuilder(symlinks=True).create(environment)
    (packages,) = environment.glob("lib/python3*/site-packages")
    (real,) = site.getsitepackages()
    (packages / "real.pth").write_text(f"import site; site.addsitedir({real!r})\n")
    (packages / "sitecustomize.py").symlink_to(PROJECT / "docs/tracing/sitecustomize.py")
    with mock.patch.object(sys, "executable", str(environment / "bin" / "python")):
        yield {"REQUEST_PATH": str(folder)}


def _server(environment: dict[str, str]) -> TritonServer:
    return TritonServer(
        PROJECT / "model_repository",
        show=lambda line: None,
        endpoints=Endpoints.free(),
        options=ONLY_EMBED,
        environment=environment,
    )


def _embed(server: TritonServer, text: str) -> None:
    with grpc.InferenceServerClient(server.endpoints.grpc_url) as client:
        tensor = grpc.InferInput("TEXT", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
        client.infer("embed", [tensor])


def way(calls: list[Call]) -> list[Step]:
    """In the order in which the request came to them.

    Threads run at once, so times are compared only where one waits for the other: a thread's first
    call, and for the thread that answers the moment at which the rank said that it is through.
    """
    threads: dict[tuple[int, str], list[Call]] = {}
    for call in calls:
        threads.setdefault((call.pid, call.thread), []).append(call)
    on_it = [t for t in threads.values() if IN_HAND & {call.function for call in t}]
    (rank,) = (t for t in on_it if any(call.function == "write_outputs" for call in t))
    through = max(call.time for call in rank if call.function == "send")
    for thread in on_it:
        if any(call.function == "deliver" for call in thread):
            thread[:] = [call for call in thread if call.time > through]
    found: dict[Step, None] = {}
    for thread in sorted(on_it):
        for call in thread:
            for file, name in reversed(call.stack):
                found.setdefault(Step(call.process(file), _source(file), name))
    return [step for step in found if _matters(step)]


def _source(file: str) -> str:
    """The build copies a model's code from beside its config into each version."""
    beside = Path(file).parent.parent / Path(file).name
    return str(beside) if (PROJECT / beside).is_file() else file


def _matters(step: Step) -> bool:
    aside = step.last in BOOKS or any(part in step.file for part in ASIDE)
    return not (aside or step.last.startswith("_") or step.name in _properties(step.file))


@cache
def _properties(file: str) -> set[str]:
    """Qualified names of what is read like an attribute."""
    return {
        f"{owner.name}.{item.name}"
        for owner in ast.walk(ast.parse((PROJECT / file).read_text()))
        if isinstance(owner, ast.ClassDef)
        for item in owner.body
        if isinstance(item, ast.FunctionDef)
        and any(ast.unparse(mark).endswith("property") for mark in item.decorator_list)
    }


def table(steps: list[Step]) -> str:
    """One row for each file that the request comes to in a process."""
    rows: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        rows.setdefault((step.process, step.file), []).append(f"`{step.last}`")
    lines = ["| process | file | functions |", "|---|---|---|"]
    for (process, file), names in rows.items():
        shown = file.removeprefix("backends/python_mp/python_mp/")
        lines.append(f"| {process} | `{shown}` | {', '.join(dict.fromkeys(names))} |")
    return "\n".join(lines) + "\n"


def shown() -> str:
    """The table of the page."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Writes the table into the page."""
    new = table(way(trace()))
    PAGE.write_text(PAGE.read_text().replace(BEGIN + shown() + END, BEGIN + new + END))


if __name__ == "__main__":
    main()
