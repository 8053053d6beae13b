"""Classify JPEG or PNG files through the ensemble `classify`.

python -m clients.classify three.png photos/*.jpg --top-k 1 --protocol http
"""

import argparse
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from tritonclient.utils import InferenceServerException

from clients.connection import (
    LOST,
    MODULES,
    Protocol,
    add_options,
    connect,
    default_url,
    patient,
    positive,
    sentence,
)

FEW = 8  # files that need no progress bar


@dataclass(frozen=True)
class Answer:
    """What the server makes of a file: labels and their probabilities, best first; or one sentence
    that says why there are none."""

    file: Path
    best: Sequence[tuple[str, float]] = ()
    error: str = ""


def classify(
    files: Sequence[Path],
    top_k: int = 3,
    url: str | None = None,
    protocol: Protocol = "grpc",
    concurrency: int = 4,
    ca: Path | None = None,
) -> Iterator[Answer]:
    """An answer for each file, in their order; a file a request, so that none spoils another."""
    address = url or default_url(protocol)
    module, local = MODULES[protocol], threading.local()

    def start() -> None:  # a thread has a client of its own: the HTTP one must not be shared
        local.client = connect(protocol, address, ca)

    def infer(file: Path) -> Answer:
        try:
            data = file.read_bytes()
        except OSError as error:
            return Answer(file, error=str(error.strerror))
        try:
            return Answer(file, _infer(local.client, module, data, top_k))
        except (InferenceServerException, *LOST) as error:
            return Answer(file, error=sentence(error, address))

    with ThreadPoolExecutor(concurrency, initializer=start) as pool:
        yield from pool.map(infer, files)


@patient
def _infer(client: Any, module: Any, image: bytes, top_k: int) -> list[tuple[str, float]]:
    """IMAGE BYTES [1, 1] and TOP_K INT32 [1, 1] to LABEL BYTES [1, k] and SCORE FP32 [1, k]."""
    tensors = [module.InferInput("IMAGE", [1, 1], "BYTES")]
    tensors[0].set_data_from_numpy(np.array([[image]], np.object_))
    tensors.append(module.InferInput("TOP_K", [1, 1], "INT32"))
    tensors[1].set_data_from_numpy(np.array([[top_k]], np.int32))
    result = client.infer("classify", tensors)
    labels = [label.decode() for label in result.as_numpy("LABEL")[0]]
    return list(zip(labels, result.as_numpy("SCORE")[0].tolist(), strict=True))


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    files: list[Path] = options.files
    server = (options.url, options.protocol)
    answers = classify(files, options.top_k, *server, options.concurrency, options.ca)
    console = Console(stderr=True, quiet=len(files) <= FEW)
    table = Table("file", "label", "score")
    refused = []
    for answer in track(answers, "classifying", len(files), console=console):
        if answer.error:
            refused.append(answer)
        for place, (label, score) in enumerate(answer.best):
            table.add_row("" if place else escape(str(answer.file)), escape(label), f"{score:.3f}")
    if table.row_count:
        Console().print(table)
    for answer in refused:
        print(f"classify: {answer.file}: {answer.error}", file=sys.stderr)
    return 1 if refused else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m clients.classify", description="Classify images.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JPEG or PNG")
    parser.add_argument("--top-k", type=positive, default=3, metavar="K", help="labels a file")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
