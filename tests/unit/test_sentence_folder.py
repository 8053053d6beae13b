"""Folders as sentence-transformers writes them, in every variant: `embed` gives what its `encode`
gives, or refuses by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from build_scripts import layer_weights, step, tasks, tokenizer_check
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from python_mp.model.request import Array
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding import weights
from python_mp.sharding.families import heads, transformers
from python_mp.sharding.families.task import Task, read
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard
from tests.support.checkpoints import CHAIN, CONFIG, PACKAGE, tiny_bert
from tests.support.sentence_folders import BARE, POOLING, SETTINGS, TRANSFORMER, encoded, saved
from tests.support.triton_stub import InferenceRequest, arguments, load_step

TEXTS = (
    "the cab.",
    "The CAB, ÉCLAIR\u2603 ace",
    "a",
    "[MASK] the [SEP]",
    "b c " * 30,
    "ΟΔΟΣ İ 中文",
)
Embed = Callable[..., Array]


CONFIGS = {
    "tokenizer": {"input": [{"name": "TEXT"}], "output": [{"name": "INPUT_IDS"}]},
    "vectors": {"input": [], "output": [{"name": "EMBEDDING", "data_type": "TYPE_FP32"}]},
}


def ensemble(folder: Path, version: Path, monkeypatch: pytest.MonkeyPatch) -> Embed:
    """As `embed` computes it, without Triton and in one piece: what its steps are built of."""
    checkpoint = Checkpoint(folder, "embed")
    steps = {}
    for family in ("tokenizer", "vectors"):
        made = version / family / "1"
        made.mkdir(parents=True, exist_ok=True)
        for name, text in step.SETTINGS[family](checkpoint).items():
            (made / name).write_text(text)
        steps[family] = load_step(family, monkeypatch).TritonPythonModel()
        steps[family].initialize(arguments(json.dumps(CONFIGS[family]), version / family, family))
    task = tasks.made("embed", checkpoint)
    task.write(version)
    given = weights.Tensors(checkpoint.model().state_dict(), torch.float32)
    layers = weights.Tensors(layer_weights.read(folder, task.layers), torch.float32)
    cpu = torch.device("cpu")
    shard = Shard(0, 1, 0, 1, torch.float32, cpu, version, {}, Alone(), given=given)
    encoder = transformers.Encoder(shard, checkpoint.architecture).eval()
    head = heads.Embedding(read(version) or Task("embed"), layers)

    def embed(texts: Sequence[str], prompt: str | None = None, width: int | None = None) -> Array:
        rows = [[text.encode()] for text in texts]
        asked = {"TEXT": np.array(rows, np.object_)}
        if prompt is not None:
            asked["PROMPT"] = np.array([[prompt.encode()]] * len(texts), np.object_)
        ids, lengths = answer(steps["tokenizer"], asked)
        packed = np.concatenate([row[:n] for row, n in zip(ids, lengths.ravel(), strict=True)])
        ends = np.array([0, *lengths.ravel()]).cumsum().astype(np.int32)
        batch = Packed({"INPUT_IDS": packed, "cu_seqlens": ends}, cpu)
        with torch.inference_mode():
            found = head(batch, encoder(batch, None))
        asked = {name: value.numpy() for name, value in found.items()}
        if width is not None:
            asked["DIMENSIONS"] = np.full((len(texts), 1), width, np.int32)
        (vectors,) = answer(steps["vectors"], asked)
        return vectors

    return embed


def answer(model: Any, inputs: dict[str, Array]) -> list[Array]:
    (response,) = model.execute([InferenceRequest(**inputs)])
    if response.error:
        raise response.error
    return list(response.outputs.values())


@pytest.mark.parametrize("seed", range(20))
def test_what_sentence_transformers_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    folder = saved(tmp_path, seed)
    embed = ensemble(folder, tmp_path / "served", monkeypatch)
    for prompt, width in ((None, None), ("query", 5), ("document", None), ("code", 1)):
        wanted = encoded(folder, TEXTS, prompt_name=prompt, truncate_dim=width)
        found = embed(TEXTS, prompt, width)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=1e-5)


# -- folders by hand -------------------------------------------------------------------------------

WITHOUT_EFFECT = (
    {"chunk_size_feed_forward": 2, "return_dict": False, "output_hidden_states": True}
    | {"pad_token_id": 5, "hidden_dropout_prob": 0.9, "attention_probs_dropout_prob": 0.9}
    | {"is_encoder_decoder": True, "pruned_heads": {"0": [0]}, "sliding_window": 2, "head_dim": 8}
    | {"text_config": {}, "architectures": ["BertForSequenceClassification"]}
)
WITH_EFFECT = {"layer_norm_eps": 0.1, "num_attention_heads": 4, "num_hidden_layers": 1}


WIDTH = {"embedding_dimension": 8}
SEVERAL = {**WIDTH, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
SEVERAL |= {"pooling_mode_cls_token": True, "pooling_mode_weightedmean_tokens": False}
OLD = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False}
NEWER = "sentence_transformers.sentence_transformer.modules"
TOKENIZER = "tokenizer_config.json"


def tokenizer(**said: Any) -> dict[str, Any]:
    """Nothing beside this says what a tokenizer does."""
    return {TOKENIZER: said, TRANSFORMER: None}


HONOURED: dict[str, dict[str, Any]] = {
    "all else of config.json": {"config.json": CONFIG | WITHOUT_EFFECT | WITH_EFFECT},
    "no settings of the tokenizer": tokenizer(),
    "cased": tokenizer(do_lower_case=False),
    "accents": tokenizer(strip_accents=False),
    "another unknown": tokenizer(unk_token="the"),
    "cut on the left": tokenizer(truncation_side="left", model_max_length=4),
    "the tokenizer's own length": tokenizer(tokenizer_class="BertTokenizer", model_max_length=6),
    "the old form of the pooling": {POOLING: OLD | {"pooling_mode_mean_tokens": True}},
    "several poolings in the old form": {POOLING: SEVERAL},
    "a list of one": {POOLING: {**WIDTH, "pooling_mode": ["cls"]}},
    "no length 1": {"modules.json": CHAIN[:2]},
    "no files of sentence-transformers": BARE,
    "no prompts to leave out": {POOLING: {**WIDTH, "include_prompt": False}},
    "a default prompt": {SETTINGS: {"prompts": {"q": "the "}, "default_prompt_name": "q"}},
    "fewer dimensions": {SETTINGS: {"truncate_dim": 3}},
    "shorter texts": {TRANSFORMER: {"max_seq_length": 5}},
    "lowercased by sentence-transformers": {
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
        TRANSFORMER: {"max_seq_length": 16, "do_lower_case": True},
    },
    "classes of 5.4": {
        "modules.json": [
            {**CHAIN[0], "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {**CHAIN[1], "type": f"{NEWER}.pooling.Pooling"},
            {**CHAIN[2], "type": "sentence_transformers.base.modules.normalize.Normalize"},
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HONOURED)
def test_what_a_folder_says_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tiny_bert(tmp_path / "folder", **HONOURED[name])
    texts = (*TEXTS, *tokenizer_check.PROBES)
    found = ensemble(folder, tmp_path, monkeypatch)(texts)
    np.testing.assert_allclose(found, encoded(folder, texts), atol=1e-5)


def chain(*kinds: str) -> list[dict[str, Any]]:
    return [
        {"path": f"{n}_{kind}" if n else "", "type": f"{PACKAGE}{kind}"}
        for n, kind in enumerate(kinds)
    ]


DENSE = {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.Tanh"}
WITH_DENSE = {
    "modules.json": chain("Transformer", "Pooling", "Dense"),
    "2_Dense/config.json": DENSE,
}
QUERY = {"prompts": {"q": "the "}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({POOLING: {"pooling_mode": "first"}}, "pooling 'first' is not known"),
    ({POOLING: {"pooling_mode": []}}, "pooling_mode is empty"),
    ({POOLING: []}, "1_Pooling/config.json is no dict"),
    ({POOLING: {"include_prompt": False}, SETTINGS: QUERY}, "include_prompt is false"),
    *(
        ({"modules.json": chain("Transformer", "Pooling", kind)}, f"chains Trans.*{kind}; embed")
        for kind in ("LayerNorm", "WordWeights", "CNN", "Router")
    ),
    *(
        ({"modules.json": chain(*kinds)}, f"chains {', '.join(kinds)}; embed")
        for kinds in (("Transformer",), ("CLIPModel",), ("Transformer", "Dense"), ("Router",))
    ),
    ({"modules.json": [CHAIN[0] | {"type": "custom.Transformer"}]}, "custom"),
    ({"modules.json": [{**CHAIN[0], "path": "../other"}]}, "is not within the folder"),
    ({"modules.json": ["Transformer"]}, "a module 'Transformer', which is no object"),
    ({"modules.json": None}, "has no modules.json, without which"),
    (
        {"2_Normalize/config.json": {"module_input_name": "token_embeddings"}},
        "module_input_name is",
    ),
    ({SETTINGS: {"default_prompt_name": "r", **QUERY}}, "is 'r'; there are .* query, document, q"),
    ({SETTINGS: {"prompts": ["q"]}}, "must be texts by their names"),
    ({SETTINGS: {"truncate_dim": 0}}, "truncate_dim is 0; it must be a whole number"),
    ({"adapter_config.json": {}}, "has an adapter"),
    (WITH_DENSE | {"2_Dense/config.json": {"in_features": 8}}, "must say in_features and out_f"),
    *(
        (WITH_DENSE | {"2_Dense/config.json": {**DENSE, "activation_function": said}}, "torch.nn's")
        for said in (
            "my.Tanh",
            "torch.nn.modules.activation.PReLU",
            "torch.nn.functional.tanh",
            "Tanh",
        )
    ),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_embed_does_not_do_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(BuildError, match=said):
        Checkpoint(tiny_bert(tmp_path, **changes), "embed")


TENSORS = {"linear.weight": torch.ones(4, 8), "linear.bias": torch.ones(4)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (None, "2_Dense has no model.safetensors: pickle can run code"),
        ({}, "holds {}; its config.json asks for {.*linear.weight"),
        (TENSORS | {"residual.weight": torch.ones(4, 8)}, "holds .*residual.weight"),
        (TENSORS | {"linear.weight": torch.ones(8, 4)}, r"holds .*\(8, 4\)"),
    ],
)
def test_weights_of_a_layer_that_do_not_fit_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor] | None, said: str
) -> None:
    folder = tiny_bert(tmp_path, **WITH_DENSE)
    (folder / "2_Dense" / "pytorch_model.bin").touch()
    if tensors is not None:
        save_file(tensors, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(BuildError, match=said):
        layer_weights.read(folder, Checkpoint(folder, "embed").settings.layers)
