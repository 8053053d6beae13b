"""What the way through front and Triton can carry: a decoder that computes nothing, 64 streams."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support import repository
from tests.support.repository import MODELS, newest, with_parameters

from .decoder_replicas import MODEL
from .goals import ROUNDS, Record, at_least, spread, stated
from .random_prompts import different
from .stream_client import Seen
from .triton_streams import Streams, streams

STREAMS, TOKENS = 64, 512
DECODER, ENSEMBLE = "nothing_decoder", "nothing"


def run() -> Iterator[Record]:
    with streams(_fill) as server:
        _decoder(server), _ensemble(server)
        rounds = [(_decoder(server), _ensemble(server)) for _ in range(ROUNDS)]
    alone, all_steps = zip(*rounds, strict=True)
    what = f"a decoder that computes nothing behind Triton, {STREAMS} streams, tokens/s"
    yield at_least(20_000, what, _rates(alone), _said(alone))
    yield stated("the same through all three steps, tokens/s", _rates(all_steps), _said(all_steps))


def _decoder(server: Streams) -> Seen:
    return server.ask(DECODER, different(STREAMS, 64), TOKENS)


def _ensemble(server: Streams) -> Seen:
    texts = [f"{number} " * 20 for number in range(STREAMS)]
    return server.ask(ENSEMBLE, texts, TOKENS)


def _rates(rounds: tuple[Seen, ...]) -> list[float]:
    return [seen.rate for seen in rounds]


def _said(rounds: tuple[Seen, ...]) -> str:
    means = [seen.tokens / seen.parts for seen in rounds]
    client = [100 * seen.cpu / seen.seconds for seen in rounds]
    return f"{spread(means)} tokens a part; the client takes {spread(client)} % of a core"


def _fill(models: Path) -> None:
    """The model's own steps around an echo_decoder of its vocabulary."""
    repository.copy(models, "chat_prompt", "chat_text")
    config = (MODELS / MODEL / "config.pbtxt").read_text().replace(MODEL, DECODER)
    config = with_parameters(config, {"engine": "echo_decoder", "kv_cache_blocks": 4096})
    files = [newest(MODEL) / name for name in ("task.json", "tokenizer.json")]
    repository.add(models, DECODER, config, files)
    ensemble = (MODELS / "chat" / "config.pbtxt").read_text().replace(MODEL, DECODER)
    repository.add(models, ENSEMBLE, ensemble.replace('name: "chat"', f'name: "{ENSEMBLE}"'))
    shutil.copytree(MODELS / "chat" / "1", models / ENSEMBLE / "1", dirs_exist_ok=True)
