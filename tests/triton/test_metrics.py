"""The python_mp metrics on Triton's own page, after a known number of requests."""

import re
import urllib.request

import pytest
from tokenizers import Tokenizer

from python_mp.front import metrics
from server.process.launch import TritonServer
from tests.support.calls import Client, reference, settled
from tests.support.repository import newest

ENCODER = {"model": "embed_encoder"}
PER_RANK = {"forward_seconds", "collective_wait_seconds"}


def tokens(texts: list[str]) -> list[int]:
    tokenizer = Tokenizer.from_file(str(newest("embed_tokenizer") / "tokenizer.json"))
    return [len(each.ids) for each in tokenizer.encode_batch(texts)]


def test_sums_are_what_was_sent(server: TritonServer) -> None:
    texts = sorted(reference().texts, key=len)
    batches = [texts[:1], texts[1:6], [texts[10], texts[190]]]
    with Client(server.endpoints) as client:
        client.embed(["the first one makes the series"])
        before = settled(server.endpoints)
        for batch in batches:
            client.embed(batch)

    def grown(name: str) -> float:
        return after.total(name, **ENCODER) - before.total(name, **ENCODER)

    after = before
    while grown("requests_total") < len(batches):
        after = settled(server.endpoints)
    lengths = [tokens(batch) for batch in batches]
    assert grown("tokens_total") == sum(map(sum, lengths))
    assert grown("tokens_saved_total") == sum(max(n) * len(n) - sum(n) for n in lengths) > 100
    assert grown("batches_total") == len(batches)
    assert grown("queue_seconds_count") == grown("request_seconds_count") == len(batches)
    parts = grown("queue_seconds_sum") + grown("batch_seconds_sum")  # a batch of one request each
    assert grown("request_seconds_sum") == pytest.approx(parts, rel=0.01)
    assert grown("restarts_total") == grown("replays_total") == 0


def test_every_family_has_its_labels(server: TritonServer) -> None:
    with Client(server.endpoints) as client:
        client.embed(["a text"])
    samples = settled(server.endpoints, lambda now: now.total("batches_total", **ENCODER) > 0)
    families = (metrics.COUNTERS | metrics.GAUGES | metrics.HISTOGRAMS).keys() - metrics.OF_STREAMS
    for name in families:
        series = f"{name}_count" if name in metrics.HISTOGRAMS else name
        wanted = {"model": "embed_encoder", "version": newest("embed_encoder").name, "replica": "0"}
        if name in PER_RANK:
            for rank in ("0", "1"):
                samples.total(series, **wanted, rank=rank)
        samples.total(series, **wanted)
    with urllib.request.urlopen(server.endpoints.metrics_url) as page:
        helped = set(re.findall(r"# HELP python_mp_(\w+)", page.read().decode()))
    known = {*families, "truncated_texts_total"}
    found = {re.sub(r"_(bucket|sum|count)$", "", name) for name in helped}
    assert found - metrics.OF_STREAMS == known  # Another model may generate.
