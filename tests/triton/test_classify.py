"""The ensemble `classify`, as clients see it: how many held-out digits it recognises, and how many
labels it gives."""

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from server.process.launch import TritonServer
from tests.support.calls import PROTOCOLS, Client, in_parallel
from tests.support.classifying import CLASSES, DEFAULT_K, classify, held_out
from tests.support.examples import digits


@pytest.mark.parametrize(("protocol", "size"), [("grpc", 1), ("grpc", 64), ("http", 20)])
def test_recognises_the_held_out_digits(server: TritonServer, protocol: str, size: int) -> None:
    files, expected = held_out()
    with Client(server.endpoints, protocol) as client:
        found = [
            client.ask("classify", "LABEL", IMAGE=np.array(files[at : at + size], object)[:, None])
            for at in range(0, len(files), size)
        ]
    best = np.concatenate(found)[:, 0]
    assert (best == np.array(expected, object)).mean() >= digits.LEAST_ACCURACY


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_gives_as_many_labels_as_asked_for(server: TritonServer, protocol: str) -> None:
    files, _ = held_out()
    with Client(server.endpoints, protocol) as client:
        all_labels, all_scores = classify(client, files[:5], CLASSES)
        assert all(sorted(row) == [b"%d" % n for n in range(CLASSES)] for row in all_labels)
        np.testing.assert_allclose(all_scores.sum(axis=1), 1, atol=1e-5)
        assert (np.diff(all_scores, axis=1) <= 0).all()
        for top_k in (1, 2, CLASSES, None):
            k = top_k or DEFAULT_K
            labels, scores = classify(client, files[:5], top_k)
            np.testing.assert_array_equal(labels, all_labels[:, :k])
            np.testing.assert_allclose(scores, all_scores[:, :k], atol=1e-5)


def test_every_client_gets_as_many_as_it_asked_for(server: TritonServer) -> None:
    """8 clients at once, each with a TOP_K of its own, some with none, some with bad files."""
    files, _ = held_out()
    with Client(server.endpoints) as client:
        expected, _ = classify(client, files[:40], CLASSES)

    def ask(number: int) -> None:
        with Client(server.endpoints, list(PROTOCOLS)[number % 2]) as client:
            for at in range(40 - number):
                k = (at + number) % 5 or None
                labels, _ = classify(client, files[at : at + 1 + number % 3], k)
                rows = expected[at : at + 1 + number % 3, : k or DEFAULT_K]
                np.testing.assert_array_equal(labels, rows)
                if at % 7 == 0:
                    with pytest.raises(InferenceServerException, match="not a JPEG or PNG"):
                        classify(client, [files[0], b"?"])

    in_parallel(8, ask)
