"""The spans of the task `tokens` are those of transformers' pipeline, by each of its strategies."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from python_mp.steps.aggregation import STRATEGIES, spans
from python_mp.steps.words import Words, places
from tests.support.checkpoints import word_piece
from tests.support.task_folders import LABELS
from tests.support.triton_stub import arguments, load_step
from tests.unit.test_tokenizer_kinds import around, byte_level, unigram

TOKENIZERS = {
    "word pieces": (word_piece, "[UNK]"),
    "bytes": (lambda: around(byte_level("<s>", "<unk>"), "<s> $A <s>"), "<unk>"),
    "unigrams": (unigram, "<unk>"),
    "no unknown": (lambda: byte_level("<s>"), None),
}
TEXTS = st.lists(
    st.sampled_from(["the", "cabs", "bad", "x9", "Éa", "\U0001f600", "\ufb01n", ".", "-", "\t"]),
    min_size=1,
    max_size=8,
)


def pipeline(tokenizer: Any, labels: tuple[str, ...]) -> Any:
    """transformers' own, without a model."""
    from transformers import TokenClassificationPipeline

    made = TokenClassificationPipeline.__new__(TokenClassificationPipeline)
    made.tokenizer = tokenizer
    made.model = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(labels))))
    return made


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spans_are_those_of_the_pipeline(name: str, data: st.DataObject) -> None:
    from transformers import PreTrainedTokenizerFast
    from transformers.pipelines.token_classification import AggregationStrategy

    make, unknown = TOKENIZERS[name]
    theirs = PreTrainedTokenizerFast(tokenizer_object=make(), unk_token=unknown)
    ours = theirs.backend_tokenizer
    ours.no_padding()
    text = data.draw(st.sampled_from(["", " "])) + data.draw(st.sampled_from([" ", "", "  "])).join(
        data.draw(TEXTS)
    )
    read, encoding = theirs(text, return_special_tokens_mask=True), ours.encode(text)
    seed = data.draw(st.integers(0, 1 << 30))
    logits = np.random.default_rng(seed).normal(size=(len(encoding.ids), len(LABELS)))
    logits = logits.astype(np.float32) * 2
    outputs = {
        "logits": torch.from_numpy(logits)[None],
        "sentence": text,
        "input_ids": torch.tensor([read["input_ids"]]),
        "offset_mapping": torch.tensor([encoding.offsets]),
        "special_tokens_mask": torch.tensor([read["special_tokens_mask"]]),
    }
    offsets = np.array(places(encoding), np.int32).reshape(-1, 2)
    continues = np.array(Words(ours, theirs.unk_token_id).continuing(text, encoding), np.int32)
    for strategy in STRATEGIES:
        with warnings.catch_warnings(action="ignore"):
            wanted = pipeline(theirs, LABELS).postprocess([outputs], AggregationStrategy(strategy))
        found = spans(logits, offsets, LABELS, strategy, continues)
        assert [(each.start, each.end, each.label) for each in found] == [
            (each["start"], each["end"], each["entity_group"]) for each in wanted
        ], (strategy, text, encoding.tokens)
        np.testing.assert_allclose(
            [each.score for each in found], [each["score"] for each in wanted], atol=1e-6
        )


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [("best", "there are simple, first, max, average"), ("first", "needs the input CONTINUES")],
)
def test_strategies_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, sentence: str
) -> None:
    module = load_step("spans", monkeypatch)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "settings.json").write_text(json.dumps({"labels": LABELS}))
    said = {"aggregation_strategy": {"string_value": strategy}}
    config = json.dumps({"input": [{"name": "LOGITS"}], "parameters": said})
    with pytest.raises(module.pb_utils.TritonModelException, match=sentence):
        module.TritonPythonModel().initialize(arguments(config, tmp_path, "spans"))
