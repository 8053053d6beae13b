"""End to end through Triton, each comparison in turns within one run of one server."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import SECONDS, at, latency, throughput
from benchmarks.load import Target, closed_loop
from benchmarks.texts import CHECKPOINT, short_texts
from build_scripts.job import REPOSITORY
from build_scripts.publish import versions
from clients.closed_loop import Load
from server.endpoints import Endpoints
from server.process.launch import TritonServer
from tests.support.repository import with_parameters

MODELS = Path(__file__).parent / "models"
DTYPES = ("float32", "bfloat16")
Address = tuple[str, str]  # url and token


def run() -> Iterator[dict[str, Any]]:
    """One record a comparison: medians of both sides over rounds in turns, and their ratio."""
    with ExitStack() as stack:
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _fill(repository)
        server = TritonServer(repository, endpoints=Endpoints.free(), show=_ignore)
        stack.enter_context(server)
        address = (server.endpoints.grpc_url, server.settings.token)
        yield from _echo(address)
        for dtype in DTYPES:
            yield from _embed(address, dtype)


def _ignore(line: str) -> None:
    """The server's log is not of interest here."""


def _echo(address: Address) -> Iterator[dict[str, Any]]:
    rows = [[0.5] * 128]
    sides = [
        lambda n, m=model: closed_loop(Target(*address, m, "X", rows), n, SECONDS)
        for model in ("echo", "identity")
    ]
    yield throughput("echo / identity in the Python backend, 32 in flight", *at(32, *sides))
    yield latency("echo / identity in the Python backend, 1 in flight", *at(1, *sides))


def _embed(address: Address, dtype: str) -> Iterator[dict[str, Any]]:
    texts = short_texts()
    rival = _plain_dtype(dtype)

    def ours(concurrency: int) -> Load:
        return closed_loop(Target(*address, f"embed_{dtype}", "TEXT", texts), concurrency, SECONDS)

    def plain(concurrency: int) -> Load:
        return closed_loop(Target(*address, f"plain_{rival}", "TEXT", texts), concurrency, SECONDS)

    yield throughput(
        f"embed {dtype}, 32 in flight / packed encoder in a loop",
        lambda: ours(32),
        lambda: _in_process(dtype),
    )
    versus = f"embed {dtype} / sentence-transformers {rival} in the Python backend"
    yield throughput(f"{versus}, 32 in flight", *at(32, ours, plain))
    yield latency(f"{versus}, 1 in flight", *at(1, ours, plain))


def _plain_dtype(dtype: str) -> str:
    """What one would choose: bfloat16 without a CPU's support for it is ten times slower."""
    return dtype if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def _in_process(dtype: str) -> Load:
    child = [sys.executable, "-m", "benchmarks.in_process", dtype, str(SECONDS)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    return Load("loop", float(done.stdout), 0.0)


def _fill(repository: Path) -> None:
    """echo and identity, and for each dtype our ensemble and the plain model."""
    for model in ("echo", "identity"):
        shutil.copytree(MODELS / model, repository / model)
        (repository / model / "1").mkdir(exist_ok=True)
    for step in ("embed_tokenizer", "embed_vectors"):
        shutil.copytree(REPOSITORY / step, repository / step)
    for dtype in {_plain_dtype(dtype) for dtype in DTYPES}:
        replacements = {'"float32"': f'"{dtype}"', "CHECKPOINT": str(CHECKPOINT.path)}
        plain = MODELS / "sentence_transformers"
        _variant(plain, f"plain_{dtype}", repository, replacements, plain / "1")
    for dtype in DTYPES:
        encoder, ensemble = f"embed_encoder_{dtype}", f"embed_{dtype}"
        _variant(REPOSITORY / "embed_encoder", encoder, repository, {}, CHECKPOINT.path)
        built = REPOSITORY / "embed_encoder" / str(versions(REPOSITORY / "embed_encoder")[-1])
        shutil.copy(built / "task.json", repository / encoder / "1")
        config = repository / encoder / "config.pbtxt"
        by_hand = {"engine": "torch", "dtype": dtype}
        config.write_text(with_parameters(config.read_text(), by_hand))
        steps = {'"embed_encoder"': f'"{encoder}"'}
        _variant(REPOSITORY / "embed", ensemble, repository, steps, REPOSITORY / "embed" / "1")


def _variant(
    model: Path, name: str, repository: Path, replacements: dict[str, str], version: Path
) -> None:
    """A model of another name with this version directory."""
    folder = repository / name
    folder.mkdir()
    config = (model / "config.pbtxt").read_text().replace(f'"{model.name}"', f'"{name}"')
    for old, new in replacements.items():
        config = config.replace(old, new)
    (folder / "config.pbtxt").write_text(config)
    shutil.copytree(version, folder / "1")
    if (model / "warmup").exists():
        shutil.copytree(model / "warmup", folder / "warmup")
