"""Folders of tiny checkpoints of all families, by `new` and the build to a Triton that answers as
transformers and sentence-transformers do. Of each task: tests/triton/test_tasks.py."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from build_scripts import build, checkpoint_images
from build_scripts.new.__main__ import main
from tests.support.calls import Client
from tests.support.campaigns import some
from tests.support.families import FAMILIES
from tests.support.serving import Serve
from tests.support.task_folders import LABELS, TEXTS, chained, folder
from tests.support.task_reference import CLOSE, check, reference, request

POOLINGS = "mean", "cls", "max", "lasttoken"


@dataclass(frozen=True)
class Case:
    """One checkpoint; `pooling` is of the task embed."""

    family: str
    task: str = "embed"
    pooling: str = "mean"
    tp: int = 1

    @property
    def name(self) -> str:
        return f"{self.family}-{self.task}"

    def write(self, path: Path) -> Path:
        folder(path, self.family, self.task, 1 if self.task == "rerank" else len(LABELS))
        return chained(path, self.pooling) if self.task == "embed" else path

    def judge(self, path: Path, client: Client) -> None:
        """Raises AssertionError where answers are not those of the reference."""
        if self.task == "embed":
            from sentence_transformers import SentenceTransformer

            with warnings.catch_warnings(action="ignore"):
                theirs = SentenceTransformer(str(path), device="cpu")
                wanted = theirs.encode(list(TEXTS), show_progress_bar=False)
            found = client.embed(TEXTS, self.name)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE)
            return
        of_images = FAMILIES[self.family].takes_images
        items = checkpoint_images.pictures(4, 3) if of_images else list(TEXTS)
        given = list(zip(TEXTS[::-1], TEXTS, strict=True)) if self.task == "rerank" else items
        inputs = request(self.task, given)
        names = {"rerank": ["SCORE"], "classify": ["LABEL", "SCORE"]}
        outputs = names.get(self.task, ["LABEL", "SCORE", "SPAN"])
        answers = {name: client.ask(self.name, name, **inputs) for name in outputs}
        check(answers, reference(path, self.task)(given))


ALL = [
    *(
        Case(
            family,
            "classify" if FAMILIES[family].takes_images else "embed",
            POOLINGS[n % 4],
            tp=1 + n % 5 // 4,
        )
        for n, family in enumerate(FAMILIES)
    ),
    *(Case("bert", task) for task in ("rerank", "classify", "tokens")),
]


def test_a_sentence_encoder_answers(serve: Serve, tmp_path: Path) -> None:
    serves([Case("roberta", pooling="cls", tp=2)], serve, tmp_path)


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", some(range(0, len(ALL), 5), 3))
def test_five_answer_behind_one_server(serve: Serve, tmp_path: Path, first: int) -> None:
    serves(ALL[first : first + 5], serve, tmp_path)


def serves(cases: Sequence[Case], serve: Serve, tmp_path: Path) -> None:
    places = f"--repository={tmp_path / 'models'}", f"--workspace={tmp_path / 'workspace'}"
    for case in cases:
        path = case.write(tmp_path / "checkpoints" / case.name)
        assert main([case.name, str(path), f"--tensor-parallel-size={case.tp}", places[0]]) == 0
    assert build.main([*places]) == 0
    wrong = {}
    with serve(tmp_path / "models") as server, Client(server.endpoints) as client:
        for case in cases:
            try:
                case.judge(tmp_path / "checkpoints" / case.name, client)
            except AssertionError as error:
                wrong[case.name] = str(error)
    assert wrong == {}
