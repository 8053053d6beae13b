"""The ensemble `embed` and the `ranker`, as clients see them, against references in one piece."""

import numpy as np
import pytest

from server.process.launch import TritonServer
from tests.support.calls import (
    BOUND,
    PROTOCOLS,
    Array,
    Client,
    closeness,
    in_parallel,
    plain_ranker,
    reference,
)

MAX_BATCH = 64


@pytest.fixture(scope="module")
def alone(server: TritonServer) -> Array:
    """Each text in a request of its own, with nobody else there: float32 [200, 384]."""
    with Client(server.endpoints) as client:
        return np.concatenate([client.embed([text]) for text in reference().texts])


@pytest.mark.parametrize(("size", "protocol"), [(1, "http"), (3, "http"), (MAX_BATCH, "grpc")])
def test_batches(server: TritonServer, alone: Array, size: int, protocol: str) -> None:
    assert reference().cosine(range(200), alone) >= BOUND["float32"]
    texts = reference().texts[: 20 * size]
    with Client(server.endpoints, protocol) as client:
        parts = [client.embed(texts[at : at + size]) for at in range(0, len(texts), size)]
    vectors = np.concatenate(parts)
    assert reference().cosine(range(len(texts)), vectors) >= BOUND["float32"]
    assert closeness(vectors, alone[: len(texts)]) >= BOUND["float32"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_ranker_against_numpy(server: TritonServer, protocol: str) -> None:
    def score(number: int) -> None:
        rows = (1, 2, 33, 256)[number]
        features = np.random.default_rng(number).standard_normal((rows, 256), np.float32)
        with Client(server.endpoints, protocol) as client:
            scores = client.score(features)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, plain_ranker(features), rtol=0, atol=2e-5)

    in_parallel(4, score)
