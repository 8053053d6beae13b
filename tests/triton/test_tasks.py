"""Cross-encoders and classifiers, from a folder through `new` and a build to clients."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from build_scripts import build, checkpoint_images
from build_scripts.new.__main__ import main as new
from clients import classify, rerank, tokens
from server.process.launch import TritonServer
from tests.support.calls import Client, in_parallel
from tests.support.gateways import gateway
from tests.support.serving import Serve
from tests.support.task_folders import LABELS, TEXTS, folder
from tests.support.task_reference import Rows, check, column, reference, request

pytestmark = pytest.mark.timeout(600)
MODELS = {
    "pairs": ("xlm_roberta", "rerank", "--tensor-parallel-size=2"),
    "texts": ("modernbert", "classify", "--tensor-parallel-size=1"),
    "pictures": ("vit", "classify", "--pipeline-parallel-size=2"),
    "names": ("bert", "tokens", "--tensor-parallel-size=1"),
    "either": ("bert", "classify", "--tensor-parallel-size=2"),
}
STRATEGY = "average"
"""Of spans: not what `new` writes."""
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("checkpoints")
    for model, (name, task, _) in MODELS.items():
        path = folder(home / model, name, task, labels=1 if task == "rerank" else len(LABELS))
        if model == "pictures":
            (path / checkpoint_images.FILE).write_text(json.dumps(PROCESSOR))
    return home


@pytest.fixture(scope="module")
def ensembles(
    serve: Serve, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    home = tmp_path_factory.mktemp("tasks")
    where = f"--repository={home / 'models'}"
    for model, (_, _, layout) in MODELS.items():
        assert new([model, str(checkpoints / model), layout, where]) == 0
    config = home / "models" / "names_spans" / "config.pbtxt"
    config.write_text(config.read_text().replace('"simple"', f'"{STRATEGY}"'))
    assert build.main([where, f"--workspace={home / 'workspace'}"]) == 0
    with serve(home / "models") as server:
        yield server


PAIRS = [(query, text) for query in TEXTS[:2] for text in TEXTS]
OUTPUTS = {
    "rerank": ("SCORE",),
    "classify": ("LABEL", "SCORE"),
    "tokens": ("LABEL", "SCORE", "SPAN"),
}


def items(model: str) -> list[Any]:
    if model == "pairs":
        return PAIRS
    if model == "either":
        return [each for text in TEXTS for each in (text, (text, TEXTS[0]))]
    return list(checkpoint_images.pictures(8, 1)) if model == "pictures" else list(TEXTS)


@pytest.mark.parametrize("model", MODELS)
def test_answers_as_the_reference_in_any_company(
    ensembles: TritonServer, checkpoints: Path, model: str
) -> None:
    """Of several clients, each with some items in a request and a TOP_K of its own, or none."""
    task, given = MODELS[model][1], items(model)
    wanted = wanted_of(checkpoints, model, given)

    def ask(number: int) -> None:
        random = np.random.default_rng(number)
        with Client(ensembles.endpoints, ("grpc", "http")[number % 2]) as client:
            for _ in range(12):
                which = random.integers(0, len(given), random.integers(1, 6))
                if model == "either":  # In one request all are texts, or all pairs.
                    which = which // 2 * 2 + which[0] % 2
                inputs = request(task, [given[n] for n in which])
                many = int(random.integers(0, len(LABELS) + 1))
                if task == "classify" and many:
                    inputs["TOP_K"] = np.full((len(which), 1), many, np.int32)
                found = {n: client.ask(model, n, **inputs) for n in OUTPUTS[task]}
                check(found, [wanted[n] for n in which])
                if task == "classify":
                    assert found["LABEL"].shape == (len(which), many or 5)

    in_parallel(4, ask)


BAD = [
    ("pairs", {"QUERY": ["a", ""], "TEXT": ["a", "b"]}, "QUERY[1] is empty."),
    ("pairs", {"QUERY": ["a"], "TEXT": [b"\xff"]}, "TEXT[0] is not UTF-8 at byte 0."),
    ("texts", {"TEXT": [""]}, "TEXT[0] is empty."),
    ("names", {"TEXT": ["a", ""]}, "TEXT[1] is empty."),
    ("pictures", {"IMAGE": [b""]}, "IMAGE[0]"),
    ("pairs", {"TEXT": ["a"]}, "expected 2 inputs but got 1"),
    ("texts", {"TEXT": ["a"], "TOP_K": [7]}, "TOP_K is 7; it must be 1 to 6."),
    ("texts", {"TEXT": ["a", "b"], "TOP_K": [1, 2]}, "the rows of a request need the same."),
    ("pictures", {"IMAGE": [b"hello"]}, "IMAGE[0] is not a JPEG or PNG file."),
    ("either", {"TEXT": ["a"], "TEXT_PAIR": [""]}, "TEXT_PAIR[0] is empty."),
    ("names", {"TEXT": ["x" * 70_000]}, "TEXT[0] has 70000 bytes; the limit is 65536."),
]


@pytest.mark.parametrize(("model", "inputs", "sentence"), BAD)
def test_refuses_with_a_sentence(
    ensembles: TritonServer, model: str, inputs: Mapping[str, Any], sentence: str
) -> None:
    with Client(ensembles.endpoints) as client, pytest.raises(InferenceServerException) as error:
        client.ask(
            model,
            "SCORE",
            **{
                name: np.array(values, np.int32)[:, None] if name == "TOP_K" else column(values)
                for name, values in inputs.items()
            },
        )
    assert sentence in str(error.value)


def test_clients(ensembles: TritonServer, checkpoints: Path, capsys: Any) -> None:
    """As programs, each with a text that is refused beside others."""
    url = f"--url={ensembles.endpoints.grpc_url}"
    pairs = [("the cab", text) for text in TEXTS]
    assert rerank.main(["--model=pairs", url, "the cab", *TEXTS, ""]) == 1
    scores = sorted((rows[0][0] for rows in wanted_of(checkpoints, "pairs", pairs)), reverse=True)
    shown = capsys.readouterr()
    assert re.findall(r"│ (-?\d+\.\d{4}) │", shown.out) == [f"{score:.4f}" for score in scores]
    assert "TEXT[0] is empty." in shown.err
    assert tokens.main(["--model=names", url, TEXTS[0], ""]) == 1
    (spans,) = wanted_of(checkpoints, "names", TEXTS[:1])
    found = re.findall(r"│ (\d+)-(\d+) *│$", capsys.readouterr().out, re.MULTILINE)
    assert [(int(start), int(end)) for start, end in found] == [row[2:] for row in spans]
    assert classify.main(["--model=texts", "--texts", "--top-k=2", url, *TEXTS[:2]]) == 0
    (best, *_), _ = wanted_of(checkpoints, "texts", TEXTS[:2])
    assert re.search(rf"{best[0]} +│ {best[1]:.3f}", capsys.readouterr().out)
    assert classify.main(["--model=either", "--texts", "--pair=a cab", url, TEXTS[0]]) == 0
    ((best, *_),) = wanted_of(checkpoints, "either", [(TEXTS[0], "a cab")])
    assert re.search(rf"{best[0]} +│ {best[1]:.3f}", capsys.readouterr().out)


def test_the_gateway_reranks(ensembles: TritonServer, checkpoints: Path) -> None:
    """The order and the scores of the reference, for more texts than a request has rows."""
    texts = [*TEXTS] * (70 // len(TEXTS) + 1)
    wanted = [
        rows[0][0] for rows in wanted_of(checkpoints, "pairs", [("the cab", t) for t in texts])
    ]
    url, admin = ensembles.endpoints.grpc_url, ensembles.settings.token
    with gateway(url, admin_token=admin) as served:
        asked = {"model": "pairs", "query": "the cab", "documents": texts}
        status, answer, _ = served.ask("/v1/rerank", asked)
        refused, why, _ = served.ask("/v1/rerank", asked | {"model": "texts"})
    assert status == 200
    scores = [each["relevance_score"] for each in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    found = {each["index"]: each["relevance_score"] for each in answer["results"]}
    np.testing.assert_allclose([found[i] for i in range(len(texts))], wanted, rtol=0, atol=1e-4)
    assert (refused, why["error"]["code"]) == (404, "model_not_found")


def wanted_of(checkpoints: Path, model: str, given: Sequence[Any]) -> list[Rows]:
    return reference(checkpoints / model, MODELS[model][1], STRATEGY)(given)
