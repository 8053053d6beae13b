"""A Triton of its own, in which candidates are served and measured."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from google.protobuf import text_format
from rich.progress import Progress

from build_scripts import artifact, publish, stages, triton_config
from build_scripts import job as jobs
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.new import pbtxt_parts
from build_scripts.plan.candidates import Choice
from build_scripts.plan.race import Rejected
from build_scripts.plan.workload import Request
from clients.closed_loop import ClosedLoop, Load, LoadError
from python_mp.machine.temporary import temporary_folder
from server.endpoints import Endpoints
from server.errors import ServerError
from server.process.launch import TritonServer

SECONDS = 1.5
"""Of a run of load."""
SIZES = "tensor_parallel_size", "pipeline_parallel_size"


class Stand:
    """Serves candidates of one model. All verbs raise Rejected.

    Args:
        first: is served from the start.
        concurrency: requests in flight.
    """

    def __init__(
        self,
        job: Job,
        first: Choice,
        requests: Sequence[Request],
        concurrency: int,
        progress: Progress,
    ) -> None:
        self._job, self._requests, self._progress = job, requests, progress
        self._first, self.concurrency = first, concurrency
        self._up: set[Choice] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            made = tempfile.TemporaryDirectory(dir=temporary_folder())
            self._repository = Path(stack.enter_context(made))
            self._prepare(self._first)
            endpoints = Endpoints.free()
            server = TritonServer(self._repository, endpoints=endpoints, show=lambda _: None)
            self._server = _started(stack, server)
            self._up.add(self._first)
            loop = ClosedLoop(server.endpoints.grpc_url, self._requests)
            self._loop = stack.enter_context(loop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep(self, *candidates: Choice) -> None:
        """Have these served, and no others."""
        for choice in self._up - {*candidates}:
            self._up.remove(choice)
            self._server.control.unload(self._name(choice))
            shutil.rmtree(self._repository / self._name(choice))
        for choice in candidates:
            if choice not in self._up:
                self._serve(choice)

    def load(self, choice: Choice, concurrency: int | None = None) -> Load:
        """What clients get of a candidate that is served."""
        try:
            return self._loop.load(self._name(choice), concurrency or self.concurrency, SECONDS)
        except LoadError as error:
            raise Rejected(str(error)) from None

    def _serve(self, choice: Choice) -> None:
        self._prepare(choice)
        try:
            self._server.control.load(self._name(choice))
        except ServerError as error:
            shutil.rmtree(self._repository / self._name(choice))
            raise Rejected(str(error)) from None
        self._up.add(choice)

    def _prepare(self, choice: Choice) -> None:
        """Puts it into the repository."""
        folder = self._repository / self._name(choice)
        version(self._job, choice, folder / "1", self._progress)
        if (warmup := self._job.folder / "warmup").is_dir():
            shutil.copytree(warmup, folder / "warmup")
        text = config(self._job, choice, folder.name, self.concurrency)
        (folder / triton_config.NAME).write_text(text)

    def _name(self, choice: Choice) -> str:
        return f"{self._job.model}_{choice.digest}"


def _started(stack: ExitStack, server: TritonServer) -> TritonServer:
    try:
        return stack.enter_context(server)
    except ServerError as error:
        raise Rejected(str(error)) from None


def version(job: Job, choice: Choice, folder: Path, progress: Progress) -> None:
    """Makes the folder the candidate's version, built and verified, or as it is published already.
    Raises Rejected."""
    overrides = {"engine": choice.engine, "dtype": choice.dtype}
    sizes = {size: getattr(choice, size) for size in SIZES}
    try:
        mine = jobs.load(job.model, job.folder.parent, overrides, job.workspace, sizes)
        steps = stages.plan(mine)
        if publish.current(mine, steps):
            newest = str(publish.versions(job.folder)[-1])
            shutil.copytree(job.folder / newest, folder)
            return
        result = artifact.build(mine, progress, publishing=False)
    except BuildError as error:
        raise Rejected(str(error)) from None
    if result.error:
        raise Rejected(result.error)
    folder.mkdir(parents=True)
    publish.fill(mine, steps, folder)


def config(job: Job, choice: Choice, name: str, concurrency: int) -> str:
    """The model's config.pbtxt for the candidate."""
    message = triton_config.read(job.folder)
    message.name = name
    del message.instance_group[:]
    for key in (*SIZES, "engine", "dtype", "threads_per_rank"):
        message.parameters.pop(key, None)
    text_format.Merge(pbtxt_parts.text(pbtxt_parts.instances(choice.layout)), message)
    queue = max(job.config.parameters.max_queue_requests, 2 * concurrency)
    said = {"max_batch_tokens": choice.max_batch_tokens, "max_queue_requests": queue}
    for key, value in (said | {"threads_per_rank": choice.threads}).items():
        if value:
            message.parameters[key].string_value = str(value)
    message.dynamic_batching.max_queue_delay_microseconds = choice.queue_delay_us
    return str(text_format.MessageToString(message))
