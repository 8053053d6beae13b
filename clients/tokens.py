"""Find names and the like in texts, through an ensemble of the task `tokens`.

python -m clients.tokens --model NAME "Ada Lovelace lived in London."
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clients.at_once import Answer, Inputs, Server, cell, told
from clients.connection import add_options


@dataclass(frozen=True)
class Span:
    """`start` and `end` count characters of the text."""

    start: int
    end: int
    label: str
    score: float


def tokens(
    model: str, texts: Sequence[str], server: Server | None = None
) -> list[Answer[list[Span]]]:
    """The spans of each text, in their order."""

    def ask(text: str) -> Inputs:
        return {"TEXT": cell(text)}

    return list((server or Server()).answers(model, texts, ask, _spans))


def _spans(result: Any) -> list[Span]:
    where, labels, scores = (result.as_numpy(name)[0] for name in ("SPAN", "LABEL", "SCORE"))
    rows = zip(where.tolist(), labels, scores.tolist(), strict=True)
    return [Span(a, b, label.decode(), score) for (a, b), label, score in rows if label]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    answers = tokens(options.model, options.texts, Server.of(options))
    table = Table("span", "label", "score", "at")
    for text, answer in zip(options.texts, answers, strict=True):
        for span in answer.result or ():
            place = f"{span.start}-{span.end}"
            shown = escape(text[span.start : span.end])
            table.add_row(shown, escape(span.label), f"{span.score:.3f}", place)
    Console().print(table)
    return told("tokens", (answer.error for answer in answers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m clients.tokens", description="Find spans.")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--model", required=True, metavar="NAME", help="the ensemble")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
