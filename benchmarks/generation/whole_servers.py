"""Whole servers with OpenAI's interface, streaming: ours (Triton, the three steps of `chat`, the
gateway) and `vllm serve`, asked by the same client.

Output tokens over the time from the first submission to the last event, some 64 tokens in, 64 out.
Each server is there alone in its turn: one that has nothing to do may still take processor time.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.peers import known
from benchmarks.peers.peer import Peer, Wire
from benchmarks.peers.peer_process import PeerError, started
from benchmarks.peers.venv import NotInstalled
from server.endpoints import Endpoints
from tests.support import repository

from .asked_program import Child, ChildError, child
from .behind_triton import STREAMS, TOKENS
from .decoder_replicas import checkpoint
from .goals import Record, in_turns, not_run, ratios, spread, stated
from .openai_streams import Order, Seen
from .random_prompts import different

MODEL = "chat"
STEPS = "chat", "chat_prompt", "chat_decoder", "chat_text"


def run() -> Iterator[Record]:
    with tempfile.TemporaryDirectory() as folder:
        sides = {p.name: partial(_round, p, Path(folder)) for p in (_ours(Path(folder)), _vllm())}
        try:
            found = in_turns(sides)
        except (NotInstalled, PeerError, ChildError) as error:
            yield not_run("whole servers", str(error))
            return
    for count in STREAMS:
        yield _record(count, {name: [each[count] for each in found[name]] for name in found})


def _round(peer: Peer, folder: Path) -> dict[int, Seen]:
    """By the number of streams."""
    command = [sys.executable, "-m", "benchmarks.generation.openai_streams"]
    with child(command) as client, started(peer, folder / "log") as server:
        _ask(client, server.endpoints, STREAMS[-1])  # It is warm from now on.
        return {count: _ask(client, server.endpoints, count) for count in STREAMS}


def _record(count: int, found: dict[str, list[Seen]]) -> Record:
    rates = {name: [each.rate for each in rounds] for name, rounds in found.items()}
    firsts = {name: [max(each.first) for each in rounds] for name, rounds in found.items()}
    said = ", ".join(
        f"{name} {spread(rates[name])}, last stream's first token {spread(firsts[name])} s"
        for name in found
    )
    ours, theirs = rates.values()
    what = f"{count} streams by OpenAI's interface / {list(rates)[-1]}"
    return stated(what, ratios(ours, theirs), f"tokens/s: {said}")


def _ask(client: Child, at: Endpoints, streams: int) -> Seen:
    url = f"http://{at.http_url}/v1/completions"
    seen = Seen(**client.ask(asdict(Order(url, MODEL, _texts(streams), TOKENS))))
    assert seen.tokens == streams * TOKENS, f"{seen.tokens} tokens came"
    return seen


def _texts(number: int) -> list[str]:
    """Of about as many tokens each, and never the same twice."""
    decode: Callable[[list[int]], str] = _tokenizer().decode
    return [decode(ids) for ids in different(number, TOKENS)]


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint() / "tokenizer.json"))


def _ours(folder: Path) -> Peer:
    models = folder / "models"
    repository.copy(models, *STEPS)

    def command(at: Endpoints) -> list[str]:
        options = {"--openai-port": at.http, "--http-port": at.openai, "--grpc-port": at.grpc}
        options |= {"--metrics-port": at.metrics, "--health-port": at.health}
        listen = [f"{name}={port}" for name, port in options.items()]
        return ["-m", "server", "--openai", f"--model-repository={models}", *listen]

    return Peer("ours", "torch", None, _wire(), command)


def _vllm() -> Peer:
    options = {"--max-model-len": "2048", "--no-enable-prefix-caching": ""}
    return known.vllm(_wire(), checkpoint(), MODEL, options)


def _wire() -> Wire:
    """Of one short answer, by which it is seen that a server is ready."""

    def body(text: str) -> str:
        return json.dumps({"model": MODEL, "prompt": text, "max_tokens": 1})

    def answered(content: bytes) -> Any:
        return np.ones(len(json.loads(content)["choices"]))

    return Wire("/v1/completions", body, answered)
