"""Shows that the server answers: a few sentences, embedded over both protocols."""

import numpy as np

from clients.embed import Vectors, embed
from server.endpoints import Endpoints

SENTENCES = [
    "A man is playing a guitar on the stage.",
    "Someone performs music in front of people.",
    "The stock market fell sharply this morning.",
    "Shares lost much of their value today.",
]


def demonstrate(endpoints: Endpoints) -> str:
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
