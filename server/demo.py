"""Shows that the server answers: for the models that it knows, once each is ready."""

import threading
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np

from clients.chat import answer
from clients.embed import Vectors, embed
from python_mp.machine.thread import Thread
from server.endpoints import Endpoints

SENTENCES = [
    "A man is playing a guitar on the stage.",
    "Someone performs music in front of people.",
    "The stock market fell sharply this morning.",
    "Shares lost much of their value today.",
]
QUESTION = "What is a kitten?"
TOKENS = 32
Demonstration = Callable[[Endpoints], str]


def embedded(endpoints: Endpoints) -> str:
    """Embed SENTENCES over gRPC and HTTP; a table of their cosine similarities."""
    vectors = embed(SENTENCES, url=endpoints.grpc_url, protocol="grpc")
    again = embed(SENTENCES, url=endpoints.http_url, protocol="http")
    difference = float(np.abs(vectors - again).max())
    note = f"embedded over gRPC and HTTP; the answers differ by at most {difference:.0e}"
    return f"{table(SENTENCES, vectors @ vectors.T)}\n{note}"


def table(texts: list[str], similarities: Vectors) -> str:
    """Similarities [n, n] of n texts, one row a text."""
    width = max(map(len, texts))
    rows = zip(texts, similarities, strict=True)
    return "\n".join(
        f"  {text:{width}}  " + " ".join(f"{value:5.2f}" for value in row) for text, row in rows
    )


def answered(endpoints: Endpoints) -> str:
    """Ask QUESTION; the beginning of the answer."""
    asked = [{"role": "user", "content": QUESTION}]
    parts = list(answer(asked, {"max_tokens": TOKENS}, url=endpoints.grpc_url))
    text = " ".join("".join(part.text for part in parts).split())
    return f"  {QUESTION}\n  {text} ...\nthat were {parts[-1].tokens} tokens of chat"


KNOWN: Mapping[str, Demonstration] = {"embed": embedded, "chat": answered}


class Demonstrations:
    """A context in which they are shown, one after another, in a thread of their own.

    Args:
        say: takes what they show.
    """

    def __init__(self, endpoints: Endpoints, say: Callable[[str], None]) -> None:
        self._endpoints = endpoints
        self._say = say
        self._left = dict(KNOWN)
        self._ready = frozenset[str]()
        self._news = threading.Event()
        self._closed = False
        self._thread = Thread(target=self._run, name="demonstrations", daemon=True)

    def serving(self, names: frozenset[str]) -> None:
        """Which models are ready."""
        self._ready = names
        self._news.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._news.set()

    def _run(self) -> None:
        while self._left and not self._closed:
            self._news.wait()
            self._news.clear()
            for name in [name for name in self._left if name in self._ready]:
                self._show(self._left.pop(name))

    def _show(self, demonstration: Demonstration) -> None:
        try:
            self._say(demonstration(self._endpoints))
        except Exception as error:
            if not self._closed:
                self._say(f"the demonstration failed: {error}")
