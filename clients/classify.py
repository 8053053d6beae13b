"""Classify JPEG or PNG files through the ensemble `classify`, or files and texts through another.

python -m clients.classify three.png photos/*.jpg --top-k 1 --protocol http
python -m clients.classify --model NAME --texts "a fine day" "what a mess"
python -m clients.classify --model NAME --texts "a man eats" --pair "nobody eats"
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from clients.at_once import Answer, Inputs, Server, cell, told
from clients.connection import add_options, positive

FEW = 8  # items that need no progress bar
Labels = list[tuple[str, float]]
"""And their scores, best first."""


def classify(
    items: Sequence[Path | str],
    top_k: int | None = None,
    server: Server | None = None,
    model: str = "classify",
    pair: str | None = None,
) -> Iterator[Answer[Labels]]:
    """An answer for each file, by its path, or text, in their order.

    Args:
        top_k: labels of each; as many as the server thinks best where it is not said.
        pair: what follows each text, for models that judge two.
    """

    def ask(item: Path | str) -> Inputs:
        """IMAGE, or TEXT and TEXT_PAIR, BYTES [1, 1], and TOP_K INT32 [1, 1]."""
        more = {} if top_k is None else {"TOP_K": np.array([[top_k]], np.int32)}
        if isinstance(item, str):
            more |= {} if pair is None else {"TEXT_PAIR": cell(pair)}
            return {"TEXT": cell(item), **more}
        return {"IMAGE": cell(item.read_bytes()), **more}

    return (server or Server()).answers(model, items, ask, _labels)


def _labels(result: Any) -> Labels:
    """Of LABEL BYTES [1, k] and SCORE FP32 [1, k]."""
    labels = [label.decode() for label in result.as_numpy("LABEL")[0]]
    return list(zip(labels, result.as_numpy("SCORE")[0].tolist(), strict=True))


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    items = options.items if options.texts else [Path(each) for each in options.items]
    answers = classify(items, options.top_k, Server.of(options), options.model, options.pair)
    console = Console(stderr=True, quiet=len(items) <= FEW)
    table = Table("text" if options.texts else "file", "label", "score")
    refused = []
    shown = track(answers, "classifying", len(items), console=console)
    for item, answer in zip(options.items, shown, strict=True):
        if answer.error:
            refused.append(f"{item}: {answer.error}")
        for place, (label, score) in enumerate(answer.result or ()):
            table.add_row("" if place else escape(item), escape(label), f"{score:.3f}")
    if table.row_count:
        Console().print(table)
    return told("classify", refused)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m clients.classify", description="Classify.")
    parser.add_argument("items", nargs="+", metavar="FILE", help="JPEG or PNG")
    parser.add_argument("--texts", action="store_true", help="what is given are texts, not files")
    parser.add_argument("--pair", metavar="TEXT", help="the second of two that are judged together")
    parser.add_argument("--model", default="classify", metavar="NAME", help="the ensemble")
    parser.add_argument("--top-k", type=positive, metavar="K", help="labels of each")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
