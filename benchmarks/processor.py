"""Processor time of a request: of all the server's processes together, not of the load's generator.

What the same ranks take without Triton is taken off, so that the rest is Triton's, the front's and
the steps'.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import tritonclient.grpc as grpc

from benchmarks.compare import SECONDS
from benchmarks.load import Target, closed_loop
from benchmarks.parallel import texts_per_second
from benchmarks.serving import MODELS
from benchmarks.texts import short_texts
from build_scripts import job
from build_scripts.job import REPOSITORY
from build_scripts.publish import versions
from clients.proxy import direct
from python_mp.front.local import Local, served
from python_mp.model import manifest
from python_mp.model.config import ModelConfig
from server.endpoints import Endpoints
from server.process.launch import TritonServer
from server.token import METADATA

ROUNDS, IN_FLIGHT = 5, 32
ENCODER = "embed_encoder"
TEXTS = 256
"""That `texts_per_second` asks for."""


def run() -> Iterator[dict[str, Any]]:
    """Milliseconds of a processor a request, 32 in flight: medians and quartiles of rounds."""
    with ExitStack() as stack:
        folder, runtime = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in "ab")
        _fill(folder)
        ranks = stack.enter_context(served(_encoder(), runtime))
        alone = [psutil.Process(pid) for pid in _children()]
        server = TritonServer(folder, endpoints=Endpoints.free(), show=lambda _: None)
        stack.enter_context(server)
        sides = {
            "identity in the Python backend": partial(_request, server, "identity", "X"),
            "echo": partial(_request, server, "echo", "X"),
            "embed as served": partial(_request, server, "embed", "TEXT"),
            "ranks of embed without Triton": partial(_alone, ranks, alone),
        }
        rounds = [{name: side() for name, side in sides.items()} for _ in range(ROUNDS)]
    *_, whole, without = sides
    for each in rounds:
        each["embed above its ranks"] = each[whole] - each[without]
    yield from (_record(name, [each[name] for each in rounds]) for name in rounds[0])


def _record(name: str, values: list[float]) -> dict[str, Any]:
    low, _, high = quantiles(values, n=4)
    return {"processor time of": name, "ms": median(values), "quartiles": f"{low:.3g}, {high:.3g}"}


def _request(server: TritonServer, model: str, name: str) -> float:
    rows: Any = short_texts() if name == "TEXT" else [[0.5] * 128]
    url, token = server.endpoints.grpc_url, server.settings.token
    target, before = Target(url, token, model, name, rows), _answered(url, token, model)
    load = partial(closed_loop, target, IN_FLIGHT, SECONDS)
    seconds = _spent([psutil.Process(server.pid)], load)
    return seconds / (_answered(url, token, model) - before) * 1e3


def _answered(url: str, token: str, model: str) -> int:
    """Requests so far; perf_analyzer's own count leaves out those of its warm-up."""
    with grpc.InferenceServerClient(url, **direct(url)) as client:
        said = client.get_inference_statistics(model, headers={METADATA: token})
    return int(said.model_stats[0].inference_stats.success.count)


def _alone(ranks: Local, processes: list[psutil.Process]) -> float:
    return _spent(processes, partial(texts_per_second, ranks)) / TEXTS * 1e3


def _spent(processes: list[psutil.Process], work: Callable[[], object]) -> float:
    """Seconds of these, and of all that they have started."""
    before = _seconds(processes)
    work()
    return _seconds(processes) - before


def _seconds(processes: list[psutil.Process]) -> float:
    everyone = [each for p in processes for each in (p, *p.children(recursive=True))]
    return sum(sum(each.cpu_times()[:2]) for each in everyone)


def _children() -> list[int]:
    return [each.pid for each in psutil.Process().children()]


def _encoder() -> ModelConfig:
    """As it is served."""
    folder = REPOSITORY / ENCODER
    said, *_ = job.load(ENCODER, overrides={}).config.source
    return manifest.configured(said, str(folder), str(versions(folder)[-1]))


def _fill(repository: Path) -> None:
    for model in ("echo", "identity"):
        shutil.copytree(MODELS / model, repository / model)
        (repository / model / "1").mkdir(exist_ok=True)
    for step in REPOSITORY.glob("embed*"):
        shutil.copytree(step, repository / step.name)
