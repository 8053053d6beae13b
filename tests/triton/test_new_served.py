"""Folders of tiny checkpoints, by `new` and the build to a Triton that answers as transformers and
sentence-transformers do."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_scripts import build, checkpoint_images
from build_scripts.new.__main__ import main
from tests.support.calls import Array, Client, text_tensor
from tests.support.families import FAMILIES
from tests.support.serving import Serve
from tests.support.task_folders import TEXTS, chained, folder

PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
IMAGES = checkpoint_images.pictures(4, 3)
QUERIES = ("the", "a bad cab", "sea", "abc", "the the", "b")
Answers = tuple[Array, Array]


@dataclass(frozen=True)
class Case:
    """One checkpoint, served; `pooling` is of the task embed."""

    family: str
    task: str = "embed"
    pooling: str = "mean"
    tp: int = 1
    pp: int = 1

    @property
    def name(self) -> str:
        return f"{self.family}-{self.task}"

    def write(self, path: Path) -> Path:
        folder(path, self.family, self.task, **({"labels": 1} if self.task == "rerank" else {}))
        if FAMILIES[self.family].takes_images:
            (path / checkpoint_images.FILE).write_text(json.dumps(PROCESSOR))
        return chained(path, self.pooling) if self.task == "embed" else path

    @property
    def options(self) -> list[str]:
        return [f"--tensor-parallel-size={self.tp}", f"--pipeline-parallel-size={self.pp}"]

    @property
    def judge(self) -> Callable[[Path, Client, str], Answers]:
        return JUDGES["image" if FAMILIES[self.family].takes_images else self.task]


def vectors(path: Path, client: Client, model: str) -> Answers:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(path), device="cpu")
    return client.embed(TEXTS, model), theirs.encode(list(TEXTS), show_progress_bar=False)


def scores(path: Path, client: Client, model: str) -> Answers:
    from sentence_transformers import CrossEncoder

    inputs = {"QUERY": text_tensor(QUERIES), "TEXT": text_tensor(TEXTS)}
    pairs = list(zip(QUERIES, TEXTS, strict=True))
    wanted = CrossEncoder(str(path), device="cpu").predict(pairs, show_progress_bar=False)
    return client.ask(model, "SCORE", **inputs)[:, 0], wanted


def classes(path: Path, client: Client, model: str) -> Answers:
    wanted = pipeline(path, "text-classification", top_k=None, truncation=True)(list(TEXTS))
    return of_classes(client, model, {"TEXT": text_tensor(TEXTS)}, wanted)


def classes_of_images(path: Path, client: Client, model: str) -> Answers:
    data = [BytesIO() for _ in IMAGES]
    for image, file in zip(IMAGES, data, strict=True):
        image.save(file, "PNG")
    column = np.array([[file.getvalue()] for file in data], np.object_)
    wanted = pipeline(path, "image-classification")(IMAGES, top_k=6)
    return of_classes(client, model, {"IMAGE": column}, wanted)


def of_classes(
    client: Client, model: str, inputs: Mapping[str, Array], wanted: Sequence[Any]
) -> Answers:
    given = {**inputs, "TOP_K": np.full((len(wanted), 1), len(wanted[0]), np.int32)}
    labels = [[each["label"].encode() for each in row] for row in wanted]
    assert client.ask(model, "LABEL", **given).tolist() == labels
    found = np.array([[each["score"] for each in row] for row in wanted])
    return client.ask(model, "SCORE", **given), found


def spans(path: Path, client: Client, model: str) -> Answers:
    inputs = {"TEXT": text_tensor(TEXTS)}
    theirs = pipeline(path, "token-classification", aggregation_strategy="simple")
    found = client.ask(model, "SPAN", **inputs)
    wanted = np.zeros_like(found)
    for row, text in enumerate(TEXTS):
        for place, each in enumerate(theirs(text)):
            wanted[row, place] = each["start"], each["end"]
    assert wanted.any()
    return found, wanted


def pipeline(path: Path, task: str, **options: Any) -> Any:
    import transformers

    return transformers.pipeline(task, model=str(path), device="cpu", **options)


JUDGES = {
    "embed": vectors,
    "rerank": scores,
    "classify": classes,
    "image": classes_of_images,
    "tokens": spans,
}
"""Each: (checkpoint, client, model) -> what is served, and what it should be."""
PAIRWISE = [
    Case("roberta", pooling="cls", tp=2),
    Case("t5"),
    Case("xlm_roberta", "rerank"),
    Case("bert", "tokens"),
    Case("vit", "classify", pp=2),
]
POOLINGS = "mean", "cls", "max", "lasttoken"
CLASSIFIED = {"vit": "classify", "dinov2": "classify", "siglip": "classify", "clip": "classify"}
ALL = [
    *(
        Case(family, CLASSIFIED.get(family, "embed"), POOLINGS[n % 4], tp=1 + n % 5 // 4)
        for n, family in enumerate(FAMILIES)
    ),
    *(Case("bert", task) for task in ("rerank", "classify", "tokens")),
]


@pytest.mark.timeout(600)
def test_each_task_answers(serve: Serve, tmp_path: Path) -> None:
    check(PAIRWISE, serve, tmp_path)


@pytest.mark.campaign
@pytest.mark.timeout(3000)
def test_each_family_answers(serve: Serve, tmp_path: Path) -> None:
    check(ALL, serve, tmp_path)


def check(cases: Sequence[Case], serve: Serve, tmp_path: Path) -> None:
    places = f"--repository={tmp_path / 'models'}", f"--workspace={tmp_path / 'workspace'}"
    for case in cases:
        path = case.write(tmp_path / "checkpoints" / case.name)
        assert main([case.name, str(path), *case.options, places[0]]) == 0
    assert build.main([*places]) == 0
    wrong = {}
    with serve(tmp_path / "models") as server, Client(server.endpoints) as client:
        for case in cases:
            path = tmp_path / "checkpoints" / case.name
            with warnings.catch_warnings(action="ignore"):
                found, wanted = case.judge(path, client, case.name)
            error = np.abs(found - wanted).max() if found.shape == wanted.shape else np.inf
            if not error <= 2e-5:
                wrong[case.name] = error
    assert wrong == {}
