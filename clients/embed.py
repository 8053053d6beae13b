"""Embed texts through the ensemble `embed`.

python -m clients.embed "a text" "another" --protocol http
python -m clients.embed --file texts.txt --output npy > vectors.npy
"""

import argparse
import io
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
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

DIM = 384
FEW = 8  # texts whose similarities fit on a screen


class EmbedError(Exception):
    """The server refused the texts, or was not reached; the message is one sentence."""


def embed(
    texts: Sequence[str],
    url: str | None = None,
    protocol: Protocol = "grpc",
    batch_size: int = 16,
    concurrency: int = 4,
    ca: Path | None = None,
) -> NDArray[np.float32]:
    """Unit vectors float32 [len(texts), 384], in the order of the texts.

    `batch_size` texts (at most 64) go in a request, `concurrency` requests are in flight.
    `url` and `ca` are those of `clients.connection.connect`. Raises EmbedError.
    """
    batches = embed_batches(texts, url, protocol, batch_size, concurrency, ca)
    return np.concatenate([np.empty((0, DIM), np.float32), *batches])


def embed_batches(
    texts: Sequence[str],
    url: str | None = None,
    protocol: Protocol = "grpc",
    batch_size: int = 16,
    concurrency: int = 4,
    ca: Path | None = None,
) -> Iterator[NDArray[np.float32]]:
    """The same, one array [at most batch_size, 384] at a time, as soon as its turn has come."""
    address = url or default_url(protocol)
    module, local = MODULES[protocol], threading.local()

    def start() -> None:  # a thread has a client of its own: the HTTP one must not be shared
        local.client = connect(protocol, address, ca)

    def infer(first: int) -> NDArray[np.float32]:
        batch = texts[first : first + batch_size]
        try:
            return _infer(local.client, module, batch)
        except (InferenceServerException, *LOST) as error:
            where = f"texts {first + 1} to {first + len(batch)}: " if len(texts) > 1 else ""
            raise EmbedError(where + sentence(error, address)) from error

    with ThreadPoolExecutor(concurrency, initializer=start) as pool:
        yield from pool.map(infer, range(0, len(texts), batch_size))


@patient
def _infer(client: Any, module: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    """One request of B texts: TEXT BYTES [B, 1] to EMBEDDING FP32 [B, 384]."""
    # Bytes that were not UTF-8 when Python read them go as they were: the server judges.
    data = [[text.encode("utf-8", "surrogateescape")] for text in texts]
    tensor = module.InferInput("TEXT", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(data, np.object_))
    vectors: NDArray[np.float32] = client.infer("embed", [tensor]).as_numpy("EMBEDDING")
    return vectors


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        texts = options.texts + (_lines(options.file) if options.file else [])
        if not texts:
            parser.error("give texts as arguments, or a file of them with --file")
        vectors = _embed_visibly(texts, options)
    except (EmbedError, OSError) as error:
        print(f"embed: {error}", file=sys.stderr)
        return 1
    try:
        _write(texts, vectors, options.output or ("table" if len(texts) <= FEW else "vectors"))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _lines(file: str) -> list[str]:
    """The lines of a file that hold something; "-" is the standard input."""
    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    lines = raw.decode("utf-8", "surrogateescape").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _embed_visibly(texts: list[str], options: argparse.Namespace) -> NDArray[np.float32]:
    """embed, with a progress bar on the standard error for more than a few texts."""
    size = options.batch_size
    server = (options.url, options.protocol)
    batches = embed_batches(texts, *server, size, options.concurrency, options.ca)
    console = Console(stderr=True, quiet=len(texts) <= FEW)
    total = -(-len(texts) // size)
    return np.concatenate(list(track(batches, "embedding", total, console=console)))


def _write(texts: list[str], vectors: NDArray[np.float32], output: str) -> None:
    if output == "table":
        Console().print(similarity_table(texts, vectors))
    elif output == "npy":
        buffer = io.BytesIO()  # numpy asks a file for its position, which a pipe has not
        np.save(buffer, vectors)
        sys.stdout.buffer.write(buffer.getbuffer())
    else:
        for vector in vectors:
            print(json.dumps([round(value, 7) for value in vector.tolist()]))


def similarity_table(texts: Sequence[str], vectors: NDArray[np.float32]) -> Table:
    """Cosine similarity of each text with each."""
    table = Table("", "text", *map(str, range(1, len(texts) + 1)))
    table.columns[1].no_wrap, table.columns[1].overflow = True, "ellipsis"
    for number, (text, row) in enumerate(zip(texts, vectors @ vectors.T, strict=True), 1):
        table.add_row(str(number), text, *(f"{value:.2f}" for value in row))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m clients.embed", description="Embed texts.")
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--file", metavar="F", help="one text a line; - is the standard input")
    add_options(parser)
    parser.add_argument(
        "--output",
        choices=["table", "vectors", "npy"],
        help=f"similarities, JSON lines or a .npy (default: table for {FEW} texts, then vectors)",
    )
    parser.add_argument("--batch-size", type=positive, default=16, help="at most 64")
    return parser


if __name__ == "__main__":
    sys.exit(main())
