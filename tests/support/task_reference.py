"""What an ensemble of a task should answer: by transformers' pipelines and sentence-transformers.

An item is a pair, a text or a picture; its answer a list of rows: (score,) of `rerank`, (label,
score) of `classify`, best first, (label, score, start, end) of `tokens`. A CrossEncoder's folder is
asked by it, where it is said to be one.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.calls import Array
from tests.support.images import encoded

Rows = list[tuple[Any, ...]]
CLOSE = 2e-5


def reference(
    path: Path, task: str, strategy: str = "simple"
) -> Callable[[Sequence[Any]], list[Rows]]:
    """For a checkpoint's folder, one item at a time."""
    if task == "rerank":
        return _cross_encoder(path)
    if task == "tokens":
        return _spans(path, strategy)
    return _labels(path)


def cross_encoder(path: Path) -> Callable[[Sequence[Any]], list[Rows]]:
    """Of several labels, as an ensemble of the task `classify` has them."""
    scores = _cross_encoder(path)
    said = json.loads((path / "config.json").read_text())["id2label"]

    def of(rows: Rows) -> Rows:
        ((values,),) = rows
        return sorted(zip(said.values(), values.tolist(), strict=True), key=lambda row: -row[1])

    return lambda pairs: [of(rows) for rows in scores(pairs)]


def _cross_encoder(path: Path) -> Callable[[Sequence[Any]], list[Rows]]:
    with warnings.catch_warnings(action="ignore"):
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(path), device="cpu")
    return lambda pairs: [[(model.predict([pair], show_progress_bar=False)[0],)] for pair in pairs]


def _spans(path: Path, strategy: str) -> Callable[[Sequence[Any]], list[Rows]]:
    """By words, where the strategy has them: transformers says that some tokenizers have none."""
    model = _pipeline("token-classification", path, aggregation_strategy=strategy)
    keys = "entity_group", "score", "start", "end"

    def of(text: str) -> Rows:
        with warnings.catch_warnings(action="ignore"):
            return [tuple(each[key] for key in keys) for each in model(text)]

    return lambda texts: [of(text) for text in texts]


def _labels(path: Path) -> Callable[[Sequence[Any]], list[Rows]]:
    of_images = (path / "preprocessor_config.json").exists()
    more = {"top_k": 99} if of_images else {"top_k": None, "truncation": True}
    kind = f"{'image' if of_images else 'text'}-classification"
    model = _pipeline(kind, path)

    def of(item: Any) -> Rows:
        in_pair = isinstance(item, tuple)
        given = dict(zip(("text", "text_pair"), item, strict=True)) if in_pair else item
        return [(each["label"], each["score"]) for each in model(given, **more)]

    return lambda items: [of(item) for item in items]


def _pipeline(kind: str, path: Path, **options: Any) -> Any:
    import transformers

    return transformers.pipeline(kind, model=str(path), device="cpu", **options)


def request(task: str, items: Sequence[Any]) -> dict[str, Array]:
    """The items as one request."""
    if isinstance(items[0], tuple):
        names = ("QUERY", "TEXT") if task == "rerank" else ("TEXT", "TEXT_PAIR")
        return {
            name: column(part) for name, part in zip(names, zip(*items, strict=True), strict=True)
        }
    if isinstance(items[0], str):
        return {"TEXT": column(items)}
    return {"IMAGE": column([encoded(image) for image in items])}


def column(cells: Sequence[str | bytes]) -> Array:
    """BYTES [cells, 1]."""
    values = [each.encode() if isinstance(each, str) else each for each in cells]
    return np.array(values, np.object_)[:, None]


def check(found: Mapping[str, Array], wanted: Sequence[Rows]) -> None:
    """Whether a response has these rows, or the first of them, for its items."""
    for number, rows in enumerate(wanted):
        parts = [found["SCORE"][number].tolist()]
        if "LABEL" in found:
            parts.insert(0, [label.decode() for label in found["LABEL"][number]])
        if "SPAN" in found:
            parts += np.transpose(found["SPAN"][number]).tolist()
            rows = rows + [("", 0.0, 0, 0)] * (len(parts[0]) - len(rows))
        ours = list(zip(*parts, strict=True))
        assert len(ours) <= len(rows)
        for one, other in zip(ours, rows, strict=False):
            assert _same(one, other), (number, one, other)


def _same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    """Numbers within CLOSE, all else equal."""
    return all(
        abs(a - b) <= CLOSE if isinstance(a, float) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )
