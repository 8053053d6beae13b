"""`embed` behind `python -m server` on a GPU, and sentence-transformers in Triton's own Python
backend: made, built, asked, under load.

    python -m benchmarks.gpu.served CHECKPOINT [cpu]

perf_analyzer, where it is there, takes least of the cores that tokenize.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tokenizers import Tokenizer

from benchmarks.gpu.json_lines import report
from benchmarks.load import Target, closed_loop
from benchmarks.watched import watched
from build_scripts.sentences import sentences
from clients.embed import Vectors, Wish, embed

OURS, PEER = "embed", "sentence_transformers"
MODELS = Path(__file__).parents[1] / "models"
TOKEN = "benchmark"
TOKENIZERS = 4


@dataclass(frozen=True)
class Device:
    """What is served on it: dtypes of both, and (in flight, texts a request)."""

    gpu: bool
    dtype: str
    peer_dtype: str
    loads: tuple[tuple[int, int], ...]
    seconds: float


DEVICES = {
    "cuda": Device(True, "bfloat16", "float16", ((1, 1), (32, 1), (1, 64), (16, 64)), 4.0),
    "cpu": Device(False, "float32", "float32", ((1, 1), (2, 2)), 1.0),
}


def main(checkpoint: Path, name: str = "cuda") -> None:
    device, texts = DEVICES[name], [text for text in sentences(400) if len(text) < 400]
    report(tokenized_per_second=_tokenized(checkpoint, texts))
    with TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        repository.mkdir()
        _build(checkpoint, repository, Path(folder, "build"), device)
        _add_peer(checkpoint, repository, device)
        began = time.perf_counter()
        with watched(repository, {"ADMIN_TOKEN": TOKEN}) as (_, endpoints):
            report(ready_s=time.perf_counter() - began)
            ours, theirs = (
                embed(texts[:64], endpoints.grpc_url, wish=Wish(model)) for model in (OURS, PEER)
            )
            report(one_minus_cosine=1 - float((_unit(ours) * _unit(theirs)).sum(1).min()))
            for flying, batch in device.loads:
                for model in (OURS, PEER):
                    target = Target(endpoints.grpc_url, TOKEN, model, "TEXT", texts, batch)
                    _load(target, flying, device.seconds)


def _load(target: Target, flying: int, seconds: float) -> None:
    load = closed_loop(target, flying, seconds)
    report(
        model=target.model,
        in_flight=flying,
        texts_a_request=target.batch,
        texts_per_second=load.requests_per_second * target.batch,
        p50_ms=load.p50_ms,
        generator=load.generator,
    )


def _build(checkpoint: Path, repository: Path, workspace: Path, device: Device) -> None:
    """The ensemble, from its folder's making to verified versions."""
    began = time.perf_counter()
    place = ["--repository", str(repository)]
    _python("build_scripts.new", OURS, str(checkpoint), *place, *["--gpu"] * device.gpu)
    _replace(repository / OURS / "recipe.toml", r'(?m)^dtype = "\w+"', f'dtype = "{device.dtype}"')
    if not device.gpu:  # What `new` chose is another engine.
        _replace(repository / OURS / "recipe.toml", r'(?m)^# engine = "torch"', 'engine = "torch"')
    tokenizer = repository / f"{OURS}_tokenizer" / "config.pbtxt"
    _replace(tokenizer, r"count: 1\b", f"count: {TOKENIZERS if device.gpu else 1}")
    _python("build_scripts.build", *place, "--workspace", str(workspace))
    report(built_s=time.perf_counter() - began, dtype=device.dtype)


def _add_peer(checkpoint: Path, repository: Path, device: Device) -> None:
    shutil.copytree(MODELS / PEER, repository / PEER)
    config = repository / PEER / "config.pbtxt"
    _replace(config, "CHECKPOINT", str(checkpoint))
    _replace(config, '"float32"', f'"{device.peer_dtype}"')
    if device.gpu:
        _replace(config, "KIND_CPU", "KIND_GPU")


def _replace(file: Path, pattern: str, text: str) -> None:
    """Raises AssertionError unless it is there: what is measured would be something else."""
    found, times = re.subn(pattern, text, file.read_text())
    assert times, f"{file} has no {pattern}"
    file.write_text(found)


def _python(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=sys.stderr)


def _tokenized(checkpoint: Path, texts: list[str]) -> float:
    """Texts a second on all cores: what no server that tokenizes can exceed."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    done, began = 0, time.perf_counter()
    while time.perf_counter() < began + 1:
        done += len(tokenizer.encode_batch_fast(texts))
    return done / (time.perf_counter() - began)


def _unit(vectors: Vectors) -> Vectors:
    found: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
