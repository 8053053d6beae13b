"""Calls to a running server, and what it should answer."""

from __future__ import annotations

import re
import time
import urllib.request
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Self, TypeVar

import numpy as np
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from build_scripts.sentences import sentences
from python_mp.front.metrics import FLUSH_SECONDS
from server.endpoints import Endpoints
from tests.support.checkpoints import packaged
from tests.support.examples import ranker
from tests.support.processes import until

Array = NDArray[Any]
T = TypeVar("T")
PROTOCOLS: dict[str, Any] = {"grpc": tritonclient.grpc, "http": tritonclient.http}
BOUND = {"float32": 0.999999, "bfloat16": 0.999}
_SAMPLE = re.compile(r"(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)")


class Client:
    """A connection of its own. Closed at the end: Triton drains no longer than its clients stay."""

    def __init__(self, endpoints: Endpoints, protocol: str = "grpc") -> None:
        url = {"grpc": endpoints.grpc_url, "http": endpoints.http_url}[protocol]
        self._module = PROTOCOLS[protocol]
        more = {"http": {"network_timeout": 60.0, "connection_timeout": 60.0}}.get(protocol, {})
        self._client = self._module.InferenceServerClient(url, **more)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, model: str, output: str, **inputs: Array) -> Array:
        """The output of that name; bytes are arrays of objects."""
        tensors = []
        for name, array in inputs.items():
            tensor = self._module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        answer: Array = self._client.infer(model, tensors).as_numpy(output)
        return answer

    def embed(self, texts: Sequence[str | bytes], model: str = "embed") -> Array:
        """float32 [texts, 384], one request."""
        return self.ask(model, "EMBEDDING", TEXT=text_tensor(texts))

    def score(self, features: Array) -> Array:
        """float32 [rows, 1], one request."""
        return self.ask("ranker", "SCORE", FEATURES=features)


def text_tensor(texts: Sequence[str | bytes]) -> Array:
    """BYTES [texts, 1]."""
    column = [[text.encode() if isinstance(text, str) else text] for text in texts]
    return np.array(column, np.object_).reshape(len(texts), 1)


@dataclass(frozen=True)
class Reference:
    """Texts, and unit vectors float32 [texts, 384] by sentence-transformers in float32."""

    texts: list[str]
    vectors: Array

    def cosine(self, which: Sequence[int], answer: Array) -> float:
        """The smallest one of `answer` [len(which), 384] with the vectors of these texts."""
        assert answer.shape == (len(which), self.vectors.shape[1])
        np.testing.assert_allclose(np.linalg.norm(answer, axis=1), 1, atol=1e-5)
        return closeness(answer, self.vectors[list(which)])


@cache
def reference() -> Reference:
    """200 texts of mixed length."""
    texts = sentences(200)
    with warnings.catch_warnings(action="ignore"):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(packaged().path), device="cpu")
        vectors = model.encode(texts, batch_size=16, show_progress_bar=False)
    return Reference(texts, np.asarray(vectors))


def closeness(a: Array, b: Array) -> float:
    """The smallest cosine between rows of the two."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())


def plain_ranker(features: Array) -> Array:
    """The ranker in one piece, in numpy and float64: [rows, 256] to [rows, 1]."""
    weights = dict(ranker.tensors())
    x = features.astype(np.float64)
    for index in range(ranker.BLOCKS):
        norm, gate, up, down = (
            weights[f"blocks.{index}.{name}.weight"] for name in ("norm", "gate", "up", "down")
        )
        y = _rms_norm(x) * norm
        gated = y @ gate.T
        x = x + (gated / (1 + np.exp(-gated)) * (y @ up.T)) @ down.T
    head = (_rms_norm(x) * weights["norm.weight"]) @ weights["head.weight"].T
    scores: Array = head + weights["head.bias"]
    return scores


def _rms_norm(x: Array) -> Array:
    normed: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
    return normed


@dataclass(frozen=True)
class Samples:
    """The python_mp metrics of one look at /metrics."""

    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series with these labels; `name` without its python_mp_."""
        wanted = frozenset(labels.items())
        found = [
            value
            for (each, has), value in self.values.items()
            if each == f"python_mp_{name}" and wanted <= has
        ]
        assert found, f"no series of {name} has {labels}"
        return sum(found)


def scrape(endpoints: Endpoints) -> Samples:
    with urllib.request.urlopen(endpoints.metrics_url) as page:
        matches = _SAMPLE.finditer(page.read().decode())
    return Samples(
        {
            (m["name"], frozenset(re.findall(r'(\w+)="([^"]*)"', m["labels"]))): float(m["value"])
            for m in matches
            if m["name"].startswith("python_mp_")
        }
    )


def settled(endpoints: Endpoints, holds: Callable[[Samples], bool] = lambda _: True) -> Samples:
    """What /metrics says once it holds and nothing changes: each number comes on its own, and
    once a second."""
    last, since = scrape(endpoints), time.monotonic()

    def is_settled() -> bool:
        nonlocal last, since
        now = scrape(endpoints)
        if now != last or not holds(now):
            last, since = now, time.monotonic()
        return time.monotonic() - since > 1.5 * FLUSH_SECONDS

    until(is_settled)
    return last


def in_parallel(workers: int, work: Callable[[int], T]) -> list[T]:
    """`work(index)` in as many threads at once, results in order; an exception comes out."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, range(workers)))


def in_background(work: Callable[[], T]) -> Future[T]:
    """Its result, by a thread of its own."""
    return ThreadPoolExecutor(1).submit(work)
