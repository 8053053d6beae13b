"""From a checkpoint's folder to what clients of its task get, against transformers' pipelines and
sentence-transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from build_scripts import checkpoint_images, checkpoint_tokenizer, step, tasks
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.new import chain
from build_scripts.stand_ins import TracedPeers
from build_scripts.trace import LENGTHS as EXAMPLE
from build_scripts.trace import example, trace
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding.families import transformers
from python_mp.sharding.families.heads import head
from python_mp.sharding.families.task import Kind
from python_mp.sharding.families.transformers import Encoder
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard
from python_mp.sharding.weights import Tensors
from python_mp.steps.aggregation import STRATEGIES
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.families import FAMILIES
from tests.support.task_folders import LABELS, MOST, TEXTS, folder
from tests.support.task_reference import check, cross_encoder, reference, request
from tests.support.triton_stub import InferenceRequest, arguments, load_step

Array = np.ndarray[Any, Any]
CPU = torch.device("cpu")


class Served:
    """The ensemble of a checkpoint for a task: its three steps, one after the other."""

    def __init__(self, path: Path, kind: Kind, patch: pytest.MonkeyPatch, **said: str) -> None:
        self.checkpoint, self._patch = Checkpoint(path, kind), patch
        self._said = {name: {"string_value": value} for name, value in said.items()}
        config = transformers.read(path / "config.json")
        self._config = config
        takes: chain.Takes = "image" if hasattr(config, "image_size") else "text"
        has_types = (
            self.checkpoint.takes_pairs
            and takes == "text"
            and checkpoint_tokenizer.has_types(self.checkpoint, config)
        )
        self._steps = chain.steps(kind, takes, chain.Sizes(0, has_types=has_types))

    def ask(self, **inputs: Array) -> dict[str, Array]:
        """One request."""
        first, encoder, last = self._steps
        made = self._step(first, inputs)
        made["LOGITS"] = self._logits({name: made[name] for name in encoder.inputs})
        return self._step(last, {**made, **inputs})

    def _step(self, wanted: chain.Step, given: Mapping[str, Array]) -> dict[str, Array]:
        version = self.checkpoint.path / wanted.job / "1"
        version.mkdir(parents=True, exist_ok=True)
        for name, text in step.SETTINGS[wanted.job](self.checkpoint).items():
            (version / name).write_text(text)
        module = load_step(wanted.job, self._patch)
        names = {"input": wanted.inputs, "output": wanted.outputs}
        config: dict[str, Any] = {
            key: [{"name": each} for each in value] for key, value in names.items()
        }
        config["parameters"] = self._said
        model = module.TritonPythonModel()
        model.initialize(arguments(json.dumps(config), version.parent, wanted.job))
        request = InferenceRequest(**{n: given[n] for n in wanted.inputs if n in given})
        (response,) = model.execute([request])
        assert response.error is None, response.error
        outputs: dict[str, Array] = response.outputs
        return outputs

    def _logits(self, given: dict[str, Array]) -> Array:
        """By the encoder and the head, of packed rows as the backend makes them."""
        found = self.checkpoint.model().state_dict()
        place = (0, 1, 0, 1, torch.float32, CPU, Path(), {}, Alone())
        shard = Shard(*place, Tensors(found, torch.float32))
        lengths = given.pop("LENGTHS", None)
        packed = dict(given)
        if lengths is not None:
            sizes = lengths.ravel().tolist()
            packed = {
                name: np.concatenate([row[:size] for row, size in zip(array, sizes, strict=True)])
                for name, array in given.items()
            }
            packed["cu_seqlens"] = np.array([0, *np.cumsum(sizes)], np.int32)
        kind = self.checkpoint.task
        assert kind is not None
        with torch.inference_mode():
            batch = Packed(packed, CPU)
            states = Encoder(shard, self._config)(batch, None)
            task = tasks.made(kind, self.checkpoint)
            logits = head(shard, self._config, task)(batch, states)["LOGITS"].numpy()
        if kind != "tokens":
            return logits
        filled = np.full((len(sizes), max(sizes), logits.shape[-1]), np.nan, np.float32)
        for row, part in zip(filled, np.split(logits, np.cumsum(sizes)[:-1]), strict=True):
            row[: len(part)] = part
        return filled


ACTIVATIONS = {
    "config_sentence_transformers.json": {"activation_fn": "torch.nn.modules.linear.Identity"},
    "config.json": {"sentence_transformers": {"activation_fn": "torch.nn.Identity"}},
    "": {},
}


@pytest.mark.parametrize("where", ACTIVATIONS)
@pytest.mark.parametrize("name", ["bert", "roberta", "xlm_roberta", "modernbert"])
def test_pairs_are_scored_as_by_a_cross_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    said = ACTIVATIONS[where] if where == "config.json" else {}
    path = folder(tmp_path / "checkpoint", name, "rerank", labels=1, **said)
    if where.startswith("config_"):
        with warnings.catch_warnings(action="ignore"):
            from sentence_transformers import CrossEncoder

            CrossEncoder(str(path), device="cpu", activation_fn=torch.nn.Identity()).save(str(path))
    pairs = [(query, text) for query in TEXTS[:3] for text in reversed(TEXTS)]
    found = Served(path, "rerank", monkeypatch).ask(**request("rerank", pairs))
    check(found, reference(path, "rerank")(pairs))
    assert np.ptp(found["SCORE"]) > 0.01


PROBLEMS = None, "multi_label_classification", "regression"


@pytest.mark.parametrize(
    ("name", "problem"),
    [*(("bert", each) for each in PROBLEMS), ("roberta", None), ("distilbert", None),
     ("modernbert", None)],
)  # fmt: skip
def test_texts_are_classified_as_by_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str | None
) -> None:
    path = folder(tmp_path, name, "classify", problem_type=problem)
    top_k = np.full((len(TEXTS), 1), len(LABELS), np.int32)
    served, theirs = Served(path, "classify", monkeypatch), reference(path, "classify")
    for items in (TEXTS, [*zip(TEXTS, reversed(TEXTS), strict=True)]):
        found = served.ask(**request("classify", items), TOP_K=top_k)
        check(found, theirs(items))
        assert found["LABEL"].shape == (len(TEXTS), len(LABELS))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_texts_are_classified_side_by_side_without_a_token_to_pad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Which transformers itself does not do."""
    path = folder(tmp_path, name, "classify", pad_token_id=None)
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**said, "pad_token_id": None}))
    texts = [*TEXTS, *reversed(TEXTS)]
    top_k = np.full((len(texts), 1), len(LABELS), np.int32)
    found = Served(path, "classify", monkeypatch).ask(**request("classify", texts), TOP_K=top_k)
    check(found, reference(path, "classify")(texts))


@pytest.mark.parametrize("activation", ["Identity", "Sigmoid", "Softmax"])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_pairs_are_classified_as_by_a_cross_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, activation: str
) -> None:
    path = folder(tmp_path, name, "classify")
    with warnings.catch_warnings(action="ignore"):
        from sentence_transformers import CrossEncoder

        made = getattr(torch.nn, activation)()
        CrossEncoder(str(path), device="cpu", activation_fn=made, max_length=24).save(str(path))
    pairs = [*zip(TEXTS, reversed(TEXTS), strict=True)]
    top_k = np.full((len(pairs), 1), len(LABELS), np.int32)
    found = Served(path, "classify", monkeypatch).ask(**request("classify", pairs), TOP_K=top_k)
    with warnings.catch_warnings(action="ignore"):
        check(found, cross_encoder(path)(pairs))


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "deberta_v2"])
def test_spans_are_those_of_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = folder(tmp_path, name, "tokens")
    for strategy in STRATEGIES:
        served = Served(path, "tokens", monkeypatch, aggregation_strategy=strategy)
        found = served.ask(**request("tokens", TEXTS))
        wanted = reference(path, "tokens", strategy)(TEXTS)
        check(found, wanted)
        assert found["LABEL"].shape[1] == max(map(len, wanted))
        assert sum(map(bool, wanted)) >= len(TEXTS) - 1


PROCESSORS = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
    },
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_classified_as_by_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = folder(tmp_path, name, "classify")
    (path / checkpoint_images.FILE).write_text(json.dumps(PROCESSORS[name]))
    images = [*checkpoint_images.pictures(4, 1), Image.new("L", (3, 90), 7)]
    images.append(images[0].convert("RGBA"))
    found = Served(path, "classify", monkeypatch).ask(**request("classify", images))
    check(found, reference(path, "classify")(images))
    assert found["LABEL"].shape == (len(images), 5)


def test_cut_pairs_are_as_long_as_the_model_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(folder(tmp_path, "bert", "rerank", labels=1), "rerank", monkeypatch)
    first = served._steps[0]
    made = served._step(first, request("rerank", [("a " * 90, "b " * 30)]))
    assert made["LENGTHS"].tolist() == [[MOST]]
    assert made["TOKEN_TYPE_IDS"].sum() == 19  # both cut to the same length, and [SEP]


def test_parts_of_pairs_reach_graphs(tmp_path: Path) -> None:
    """In the program that AOTInductor and ONNX Runtime are given, of a model in one piece."""
    family, lengths = FAMILIES["bert"], list(EXAMPLE)
    model, random = family.make(), torch.Generator().manual_seed(1)
    ids = torch.randint(3, 99, (sum(lengths),), generator=random, dtype=torch.int32)
    types = torch.randint(0, 2, (sum(lengths),), generator=random, dtype=torch.int32)
    parts = zip(ids.split(lengths), types.split(lengths), strict=True)
    with torch.no_grad():
        wanted = torch.cat(
            [model(input_ids=a[None], token_type_ids=b[None])[0][0] for a, b in parts]
        )
    names = ("INPUT_IDS", "TOKEN_TYPE_IDS")
    rows = [tensor(name, INT32, -1, allow_ragged_batch=True) for name in names]
    served = model_config(tmp_path, rows, [tensor("HIDDEN_STATES", FP32, -1, 48)], engine="torch")
    given = {**example(served), "INPUT_IDS": ids, "TOKEN_TYPE_IDS": types}
    for onnx in (False, True):
        place = (0, 1, 0, 1, torch.float32, CPU, Path(), {}, TracedPeers(0, 1, onnx))
        shard = Shard(*place, Tensors(model.state_dict(), torch.float32))
        config = type(model.config).from_dict(model.config.to_dict())
        found = trace(Encoder(shard, config).eval(), served, None, onnx)
        (states,) = found.program.module()(*(given[name] for name in found.inputs))
        torch.testing.assert_close(states, wanted, atol=2e-5, rtol=0.0)
