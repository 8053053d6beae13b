"""Turns: each peer is started, asked, put under load with one and with 32 in flight, and stopped.

`make bench ARGS="peers --only mosec --turns 3 --seconds 5"`
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.peers import known, venv
from benchmarks.peers.peer import Array, InProcess, Peer
from benchmarks.peers.peer_process import PeerError, started
from benchmarks.texts import CHECKPOINT, short_texts
from clients.closed_loop import LoadError

OURS = "ours"
FLYING = 32
SAME = 0.9999
"""Cosine to the reference; of what answers something else no figure is taken."""
SHARES = 3
"""A turn compares the answers of every third text: three turns those of all."""
Key = tuple[str, str, str]  # name, engine, door


@dataclass(frozen=True)
class Measured:
    """One turn of one door; the least cosine of its vectors to the reference."""

    texts_per_second: float
    p50_ms: float
    ready_seconds: float
    cosine: float


@dataclass(frozen=True)
class Texts:
    """What is sent, and the vectors that sentence-transformers makes of them, of length 1."""

    texts: list[str]
    vectors: Array

    @classmethod
    def usual(cls) -> Texts:
        texts = short_texts()
        model = SentenceTransformer(str(CHECKPOINT.path), device="cpu")
        return cls(texts, model.encode(texts, normalize_embeddings=True, batch_size=8))

    def cosine(self, found: Array, which: slice = slice(None)) -> float:
        """The least one of these texts."""
        unit = found / np.linalg.norm(found, axis=1, keepdims=True)
        return float((unit * self.vectors[which]).sum(1).min())


def run(only: Sequence[str], turns: int, seconds: float) -> Iterator[dict[str, Any]]:
    """One record a peer and door, ours first: medians of turns. What `only` names as in the first
    column, or a part of it; without names all.

    Raises:
        SystemExit: none is called so.
    """
    every: list[Peer | InProcess] = [*known.served(), *known.in_process()]
    contenders = [each for each in every if _is_wanted(each, only)]
    if only and all(each.name == OURS for each in contenders):
        raise SystemExit(f"no peer is called {' or '.join(only)}")
    texts, failed = Texts.usual(), dict[str, str]()
    measured = defaultdict[Key, list[Measured]](list)
    for turn in range(turns):
        asked = slice(turn % SHARES, None, SHARES)
        for each in contenders:
            if each.name not in failed:
                try:
                    for door, one in _turn(each, texts, asked, seconds):
                        measured[each.name, each.engine, door].append(one)
                except (venv.NotInstalled, PeerError, LoadError) as error:
                    failed[each.name] = str(error)
    yield from _records(measured)
    for name, why in failed.items():
        yield dict.fromkeys(COLUMNS, "") | {"peer": name, "turns": f"failed: {why}"}


def _is_wanted(each: Peer | InProcess, only: Sequence[str]) -> bool:
    names = [OURS, *only] if only else [""]
    return any(name.lower() in each.name.lower() for name in names)


def _turn(
    each: Peer | InProcess, texts: Texts, asked: slice, seconds: float
) -> Iterator[tuple[str, Measured]]:
    """A measurement a door; the answers of these texts are compared."""
    if isinstance(each, InProcess):
        yield "call", _called(each, texts, seconds)
        return
    venv.FOLDER.mkdir(parents=True, exist_ok=True)
    log = venv.FOLDER / f"{re.sub(r'[^a-z]+', '-', each.name.lower())}.log"
    with started(each, log) as running:
        vectors = np.stack([running.ask(text) for text in texts.texts[asked]])
        cosine = texts.cosine(vectors, asked)
        if cosine < SAME:
            raise PeerError(f"its answers are not the checkpoint's: cosine {cosine:.4f}")
        for door in each.doors:
            one, many = (running.load(door, texts.texts, n, seconds) for n in (1, FLYING))
            rate, p50 = many.requests_per_second, one.p50_ms
            yield door, Measured(rate, p50, running.ready_seconds, cosine)


def _called(each: InProcess, texts: Texts, seconds: float) -> Measured:
    variables = os.environ | known.encoder(each.engine, 1)
    done = subprocess.run(
        [venv.python(each.packages), str(each.program)],
        input=json.dumps({"texts": texts.texts, "seconds": seconds}),
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    if done.returncode:
        raise PeerError(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout)
    cosine = texts.cosine(np.array(found["vectors"]))
    return Measured(found["texts_per_second"], found["p50_ms"], 0.0, cosine)


COLUMNS = (
    *("peer", "engine", "over", "texts/s", "p50 ms", "ready s", "cosine"),
    *("ours: texts/s", "ours: p50", "turns"),
)


def _records(measured: dict[Key, list[Measured]]) -> Iterator[dict[str, Any]]:
    ours = {door: _medians(turns) for (name, _, door), turns in measured.items() if name == OURS}
    for (name, engine, door), turns in measured.items():
        rate, p50, ready = _medians(turns)
        our_rate, our_p50, _ = ours.get(door, ours["HTTP"])
        values = (name, engine, door, rate, p50, ready, min(one.cosine for one in turns))
        each = " ".join(f"{one.texts_per_second:.0f}/{one.p50_ms:.1f}" for one in turns)
        yield dict(zip(COLUMNS, (*values, our_rate / rate, our_p50 / p50, each), strict=True))


def _medians(turns: list[Measured]) -> tuple[float, float, float]:
    return (
        median(one.texts_per_second for one in turns),
        median(one.p50_ms for one in turns),
        median(one.ready_seconds for one in turns),
    )
