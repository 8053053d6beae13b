"""Embed texts through the ensemble `embed`, or another that is made of a sentence encoder.

python -m clients.embed "a text" "another" --protocol http
python -m clients.embed "a question" --prompt query --dimensions 128
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
from dataclasses import dataclass
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

Vectors = NDArray[Any]
FEW = 8  # texts whose similarities fit on a screen


class EmbedError(Exception):
    """The server refused the texts, or was not reached; the message is one sentence."""


@dataclass(frozen=True)
class Wish:
    """
    Attributes:
        model: the ensemble.
        prompt: the name of what the checkpoint puts before a text; its default without one.
        dimensions: leading values of a vector that are wanted; all without a number.
    """

    model: str = "embed"
    prompt: str | None = None
    dimensions: int | None = None


USUAL = Wish()


def embed(
    texts: Sequence[str],
    url: str | None = None,
    protocol: Protocol = "grpc",
    batch_size: int = 16,
    concurrency: int = 4,
    ca: Path | None = None,
    wish: Wish = USUAL,
) -> Vectors:
    """Vectors [len(texts), width], in the order of the texts: float32, or what the ensemble has.

    `batch_size` texts (at most 64) go in a request, `concurrency` requests are in flight.
    `url` and `ca` are those of `clients.connection.connect`. Raises EmbedError.
    """
    batches = [*embed_batches(texts, url, protocol, batch_size, concurrency, ca, wish)]
    return np.concatenate(batches) if batches else np.empty((0, 0), np.float32)


def embed_batches(
    texts: Sequence[str],
    url: str | None = None,
    protocol: Protocol = "grpc",
    batch_size: int = 16,
    concurrency: int = 4,
    ca: Path | None = None,
    wish: Wish = USUAL,
) -> Iterator[Vectors]:
    """The same, one array [at most batch_size, width] at a time, as soon as its turn has come."""
    address = url or default_url(protocol)
    module, local = MODULES[protocol], threading.local()

    def start() -> None:  # a thread has a client of its own: the HTTP one must not be shared
        local.client = connect(protocol, address, ca)

    def infer(first: int) -> Vectors:
        batch = texts[first : first + batch_size]
        try:
            return _infer(local.client, module, batch, wish)
        except (InferenceServerException, *LOST) as error:
            where = f"texts {first + 1} to {first + len(batch)}: " if len(texts) > 1 else ""
            raise EmbedError(where + sentence(error, address)) from error

    with ThreadPoolExecutor(concurrency, initializer=start) as pool:
        yield from pool.map(infer, range(0, len(texts), batch_size))


@patient
def _infer(client: Any, module: Any, texts: Sequence[str], wish: Wish) -> Vectors:
    """One request of B texts: TEXT BYTES [B, 1], and where it is wished PROMPT BYTES [B, 1] and
    DIMENSIONS INT32 [B, 1], to EMBEDDING [B, width]."""
    # Bytes that were not UTF-8 when Python read them go as they were: the server judges.
    data = [[text.encode("utf-8", "surrogateescape")] for text in texts]
    tensors = [_tensor(module, "TEXT", "BYTES", np.array(data, np.object_))]
    if wish.prompt is not None:
        names = np.full((len(texts), 1), wish.prompt.encode(), np.object_)
        tensors.append(_tensor(module, "PROMPT", "BYTES", names))
    if wish.dimensions is not None:
        widths = np.full((len(texts), 1), wish.dimensions, np.int32)
        tensors.append(_tensor(module, "DIMENSIONS", "INT32", widths))
    vectors: Vectors = client.infer(wish.model, tensors).as_numpy("EMBEDDING")
    return vectors


def _tensor(module: Any, name: str, kind: str, array: NDArray[Any]) -> Any:
    found = module.InferInput(name, list(array.shape), kind)
    found.set_data_from_numpy(array)
    return found


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


def _embed_visibly(texts: list[str], options: argparse.Namespace) -> Vectors:
    """embed, with a progress bar on the standard error for more than a few texts."""
    size = options.batch_size
    server = (options.url, options.protocol)
    wish = Wish(options.model, options.prompt, options.dimensions)
    batches = embed_batches(texts, *server, size, options.concurrency, options.ca, wish)
    console = Console(stderr=True, quiet=len(texts) <= FEW)
    total = -(-len(texts) // size)
    return np.concatenate(list(track(batches, "embedding", total, console=console)))


def _write(texts: list[str], vectors: Vectors, output: str) -> None:
    if output == "table":
        Console().print(similarity_table(texts, vectors))
    elif output == "npy":
        buffer = io.BytesIO()  # numpy asks a file for its position, which a pipe has not
        np.save(buffer, vectors)
        sys.stdout.buffer.write(buffer.getbuffer())
    else:
        for vector in vectors:
            print(json.dumps([round(value, 7) for value in vector.tolist()]))


def similarity_table(texts: Sequence[str], vectors: Vectors) -> Table:
    """Cosine similarity of each text with each."""
    values = np.unpackbits(vectors, axis=1) * 2.0 - 1 if vectors.dtype == np.uint8 else vectors
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    table = Table("", "text", *map(str, range(1, len(texts) + 1)))
    table.columns[1].no_wrap, table.columns[1].overflow = True, "ellipsis"
    for number, (text, row) in enumerate(zip(texts, unit @ unit.T, strict=True), 1):
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
    parser.add_argument("--model", default="embed", help="an ensemble of the task embed")
    parser.add_argument("--prompt", metavar="NAME", help="what the checkpoint puts before a text")
    parser.add_argument("--dimensions", type=positive, metavar="N", help="leading values wanted")
    parser.add_argument("--batch-size", type=positive, default=16, help="at most 64")
    return parser


if __name__ == "__main__":
    sys.exit(main())
