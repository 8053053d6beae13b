"""The python_mp metrics on Triton's own page, after a known number of requests."""

import itertools
import re
import urllib.request

import numpy as np
import pytest
from tokenizers import Tokenizer

from python_mp.front import metrics
from server.process.launch import TritonServer
from tests.triton.calls import Client, Samples, reference, settled
from tests.triton.repository import newest

ENCODER = {"model": "embed_encoder"}
PER_RANK = {"forward_seconds", "collective_wait_seconds"}


def tokens(texts: list[str]) -> list[int]:
    tokenizer = Tokenizer.from_file(str(newest("embed_tokenizer") / "tokenizer.json"))
    return [len(each.ids) for each in tokenizer.encode_batch(texts)]


def settled_after(server: TritonServer, model: str, more: int, before: Samples) -> Samples:
    wanted = before.total("requests_total", model=model) + more
    return settled(server.endpoints, lambda now: now.total("requests_total", model=model) == wanted)


def test_sums_are_what_was_sent(server: TritonServer) -> None:
    texts = sorted(reference().texts, key=len)
    batches = [texts[:1], texts[1:6], [texts[10], texts[190]]]
    with Client(server.endpoints) as client:
        client.embed(["the first one makes the series"])
        before = settled(server.endpoints)
        for batch in batches:
            client.embed(batch)
    after = settled_after(server, "embed_encoder", len(batches), before)

    def grown(name: str) -> float:
        return after.total(name, **ENCODER) - before.total(name, **ENCODER)

    lengths = [tokens(batch) for batch in batches]
    assert grown("tokens_total") == sum(map(sum, lengths))
    assert grown("tokens_saved_total") == sum(max(n) * len(n) - sum(n) for n in lengths) > 100
    assert grown("batches_total") == len(batches)
    assert grown("queue_seconds_count") == grown("request_seconds_count") == len(batches)
    parts = grown("queue_seconds_sum") + grown("batch_seconds_sum")  # a batch of one request each
    assert grown("request_seconds_sum") == pytest.approx(parts, rel=0.01)
    assert grown("restarts_total") == grown("replays_total") == 0


def test_rows_are_the_tokens_of_a_model_without_sequences(server: TritonServer) -> None:
    before = settled(server.endpoints)
    with Client(server.endpoints) as client:
        for rows in (1, 7, 256):
            client.score(np.zeros((rows, 256), np.float32))
    after = settled_after(server, "ranker", 3, before)
    grown = {
        name: after.total(name, model="ranker") - before.total(name, model="ranker")
        for name in ("tokens_total", "tokens_saved_total")
    }
    assert grown == {"tokens_total": 264, "tokens_saved_total": 0}


def test_every_family_has_its_labels(server: TritonServer) -> None:
    with Client(server.endpoints) as client:
        client.embed(["a text"])
    samples = settled(server.endpoints, lambda now: now.total("batches_total", **ENCODER) > 0)
    for name in (*metrics.COUNTERS, *metrics.GAUGES, *metrics.HISTOGRAMS):
        series = f"{name}_count" if name in metrics.HISTOGRAMS else name
        wanted = {"model": "embed_encoder", "version": newest("embed_encoder").name, "replica": "0"}
        if name in PER_RANK:
            for rank in ("0", "1"):
                samples.total(series, **wanted, rank=rank)
        samples.total(series, **wanted)
    with urllib.request.urlopen(server.endpoints.metrics_url) as page:
        helped = set(re.findall(r"# HELP python_mp_(\w+)", page.read().decode()))
    families = metrics.COUNTERS | metrics.GAUGES | metrics.HISTOGRAMS
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in helped} == set(families)


@pytest.mark.parametrize("name", metrics.HISTOGRAMS)
def test_histograms_are_well_formed(server: TritonServer, name: str) -> None:
    with Client(server.endpoints) as client:
        client.embed(["a text"])
    samples = settled(server.endpoints, lambda now: now.total("batches_total", **ENCODER) > 0)
    more = {"rank": "1"} if name in PER_RANK else {}
    bounds = [f"{bound:g}" for bound in metrics.BUCKETS] + ["+Inf"]
    counts = [samples.total(f"{name}_bucket", **ENCODER, **more, le=le) for le in bounds]
    assert all(a <= b for a, b in itertools.pairwise(counts))
    assert counts[-1] == samples.total(f"{name}_count", **ENCODER, **more) > 0
    seconds = samples.total(f"{name}_sum", **ENCODER, **more)
    assert 0 < seconds < 10 * counts[-1]
