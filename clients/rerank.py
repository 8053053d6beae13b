"""Order texts by how well they answer a query, through an ensemble of the task `rerank`.

python -m clients.rerank --model NAME "how tall is the tower?" "It has 324 m." "It is of iron."
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clients.at_once import Answer, Inputs, Server, cell, told
from clients.connection import add_options


def rerank(
    model: str, query: str, texts: Sequence[str], server: Server | None = None
) -> list[Answer[float]]:
    """The score of each text, in their order."""

    def ask(text: str) -> Inputs:
        return {"QUERY": cell(query), "TEXT": cell(text)}

    made = (server or Server()).answers(
        model, texts, ask, lambda result: float(result.as_numpy("SCORE")[0, 0])
    )
    return list(made)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    answers = rerank(options.model, options.query, options.texts, Server.of(options))
    table = Table("score", "text")
    found = zip(options.texts, answers, strict=True)
    scored = [(each.result, text) for text, each in found if each.result is not None]
    for score, text in sorted(scored, reverse=True):
        table.add_row(f"{score:.4f}", escape(text))
    if scored:
        Console().print(table)
    return told("rerank", (each.error for each in answers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m clients.rerank", description="Order texts.")
    parser.add_argument("query", metavar="QUERY")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--model", required=True, metavar="NAME", help="the ensemble")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
