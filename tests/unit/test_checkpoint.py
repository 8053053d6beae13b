"""A checkpoint folder in every variant: served as transformers and sentence-transformers read it,
or refused by name."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from build_scripts import checkpoint_tokenizer, fetch
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.recipe import Accuracy, Recipe, Shapes
from python_mp.model.errors import LoadError
from python_mp.model.request import Array
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding import weights
from python_mp.sharding.checkpoint import WEIGHTS
from python_mp.sharding.families import transformers
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard
from python_mp.sharding.weights import Weights
from tests.support.checkpoints import (
    CONFIG,
    FOLDER,
    WORDS,
    shapes,
    split,
    tensors,
    tiny_bert,
    word_piece,
)

CPU = torch.device("cpu")


def hidden(folder: Path, given: Weights, ids: list[int]) -> Array:
    """[tokens, hidden] by our encoder on one rank."""
    shard = Shard(0, 1, 0, 1, torch.float32, CPU, folder, {}, Alone(), given=given)
    config = transformers.read(folder / "config.json")
    row = np.array(ids, np.int32)
    packed = {"INPUT_IDS": row, "cu_seqlens": np.array([0, row.size], np.int32)}
    with torch.inference_mode():
        outputs = transformers.Encoder(shard, config).eval()(Packed(packed, CPU), None)
    return np.asarray(outputs["HIDDEN_STATES"])


def theirs(folder: Path, ids: list[int]) -> Array:
    from transformers import AutoModel

    with warnings.catch_warnings(action="ignore"), torch.inference_mode():
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        return np.asarray(model(torch.tensor([ids])).last_hidden_state[0])


def assert_read_as_by_transformers(folder: Path) -> None:
    """By the build and, where somebody puts the files into a version, by hand."""
    ids = [2, 5, 9, 30, 3]
    expected = theirs(folder, ids)
    built = weights.Tensors(Checkpoint(folder).model().state_dict(), torch.float32)
    by_hand = weights.Checkpoint(folder, torch.float32, CPU)
    for given in (built, by_hand):
        np.testing.assert_allclose(hidden(folder, given, ids), expected, atol=1e-5)


MORE: dict[str, Array] = {
    "embeddings.position_ids": np.arange(32)[None],
    "pooler.dense.weight": np.ones((8, 8), np.float32),
    "cls.predictions.bias": np.ones(len(WORDS), np.float32),
}


@pytest.mark.parametrize(
    ("prefix", "renamed", "more", "left_out"),
    [("", False, {}, ()), ("bert.", True, MORE, ("layer_norm_eps", "type_vocab_size"))],
)
def test_a_checkpoint_is_read_as_transformers_reads_it(
    tmp_path: Path, prefix: str, renamed: bool, more: dict[str, Array], left_out: tuple[str, ...]
) -> None:
    said = {key: value for key, value in CONFIG.items() if key not in left_out}
    folder = tiny_bert(tmp_path, **{"config.json": said})
    old = {"weight": "gamma", "bias": "beta"} if renamed else {}
    named = {
        prefix + re.sub(r"(?<=LayerNorm\.)(\w+)", lambda m: old.get(m[0], m[0]), name): tensor
        for name, tensor in tensors(CONFIG).items()
    }
    save_file(named | more, folder / WEIGHTS)
    assert_read_as_by_transformers(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("is_decoder", True), ("hidden_act", "gelu_new"), ("position_embedding_type", "relative_key")],
)
def test_what_config_says_is_computed(tmp_path: Path, key: str, value: object) -> None:
    assert_read_as_by_transformers(tiny_bert(tmp_path, **{"config.json": {**CONFIG, key: value}}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformers_weights", "other.safetensors"),
        ("quantization_config", {"quant_method": "gptq"}),
        ("model_type", None),
        ("architectures", ["JinaBertModel"]),
    ],
)
def test_what_is_not_computed_is_named(tmp_path: Path, key: str, value: object) -> None:
    """At the build, and where somebody puts the files into a version folder."""
    folder = tiny_bert(tmp_path, **{"config.json": {**CONFIG, key: value}})
    said = f"has (the )?{key.removesuffix('s')}"
    with pytest.raises(BuildError, match=said):
        Checkpoint(folder).model()
    with pytest.raises(LoadError, match=said):
        transformers.read(folder / "config.json")


FAMILIES: dict[str, dict[str, Any]] = {
    "roberta": {"type_vocab_size": 1},
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
    "megatron-bert": {},
    "modernbert": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_another_family_is_refused_under_berts_name(tmp_path: Path, family: str) -> None:
    """Many have tensors of the same names and shapes, and compute something else with them."""
    from transformers import AutoConfig, AutoModel

    sizes = {k: v for k, v in CONFIG.items() if k not in ("model_type", "type_vocab_size")}
    folder = tiny_bert(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        config = AutoConfig.for_model(family, **sizes | FAMILIES[family])
        AutoModel.from_config(config).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"model_type": "bert"}))
    with pytest.raises(BuildError, match="has the architecture .*, which is no bert"):
        Checkpoint(folder).model()


@pytest.mark.parametrize("left_out", [*shapes(CONFIG)][::4])
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, left_out: str) -> None:
    folder, found = tiny_bert(tmp_path), tensors(CONFIG)
    tensor = found.pop(left_out)
    for broken in ({}, {left_out: np.concatenate([tensor] * 2)}):
        save_file(found | broken, folder / WEIGHTS)
        with pytest.raises(BuildError, match=re.escape(left_out)):
            Checkpoint(folder).model()
        with pytest.raises(LoadError, match=re.escape(left_out)):
            hidden(folder, weights.Checkpoint(folder, torch.float32, CPU), [2, 5, 3])


# -- which files are the checkpoint ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("has_whole", "has_index", "has_stray"), [(1, 0, 1), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1)]
)
def test_one_rule_says_which_files_are_the_checkpoint(
    tmp_path: Path, has_whole: bool, has_index: bool, has_stray: bool
) -> None:
    folder = tiny_bert(tmp_path / "m" / "1")
    if has_index:
        split(folder, seed=7)
    if has_stray:
        save_file(tensors(CONFIG, 9), folder / "z.safetensors")
    if not has_whole:
        (folder / WEIGHTS).unlink()
    if has_whole or has_index:
        assert_read_as_by_transformers(folder)
    else:
        assert "embeddings.LayerNorm.weight" in weights.Checkpoint(folder, torch.float32, CPU)
        save_file(tensors(CONFIG, 8), folder / "a.safetensors")
        with pytest.raises(LoadError, match=r"has a.safetensors, z.safetensors, and which of them"):
            weights.Checkpoint(folder, torch.float32, CPU)


def test_everything_that_is_read_is_hashed(tmp_path: Path) -> None:
    """Whatever transformers, sentence-transformers and we open is part of the stage's key."""
    folder = tiny_bert(tmp_path / "checkpoint", **{"2_Normalize/config.json": {}})
    (folder / "3_Dense").mkdir()
    save_file(tensors(CONFIG), folder / "3_Dense" / WEIGHTS)
    gate, shapes = Accuracy(cosine_min=0.9), Shapes(rows=(1, 1, 1))
    recipe = Recipe(family="transformers", source=str(folder), shapes=shapes, accuracy=gate)
    job = Job("m", tmp_path, tmp_path, recipe)
    before = fetch._hashes(job, folder)
    for path in sorted(folder.rglob("*.*")):
        kept = path.read_bytes()
        path.write_bytes(kept + b" ")
        assert fetch._hashes(job, folder) != before, path
        path.write_bytes(kept)


# -- tokenizers ----------------------------------------------------------------------------------


TRANSFORMER, TOKENIZER = "sentence_bert_config.json", "tokenizer_config.json"


def tokenizer(**said: Any) -> dict[str, Any]:
    """Nothing beside this says what a tokenizer does."""
    return {TOKENIZER: said, TRANSFORMER: None}


MORE_WORDS = [*WORDS[:5], *"0123456789", *WORDS[5:]]


def with_length(file: str, key: str, limit: object) -> dict[str, Any]:
    return {file: FOLDER[file] | {key: limit}}


@pytest.mark.parametrize(
    ("changes", "words", "reason"),
    [
        (tokenizer(split_special_tokens=True), WORDS, "does what no tokenizer.json can say"),
        (tokenizer(tokenizer_class="RobertaTokenizer"), WORDS, r"gives the id \d+, but"),
        (with_length(TOKENIZER, "model_max_length", "8"), WORDS, "model_max_length '8' in "),
        (with_length(TRANSFORMER, "max_seq_length", 1), WORDS, "has max_seq_length 1; it must"),
        (with_length("config.json", "max_position_embeddings", 6.0), WORDS, "max_position_embe"),
        (with_length(TOKENIZER, "model_max_length", 8), WORDS, "8 tokens by tokenizer_con.* 16 by"),
        ({}, [*WORDS[:1], *WORDS[2:]], r"Missing \[UNK\] token|for what it does not know"),
        ({}, MORE_WORDS, r"gives the id \d+, but the model knows 38 tokens"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str], reason: str
) -> None:
    folder = tiny_bert(tmp_path, **changes)
    word_piece(words).save(str(folder / "tokenizer.json"))
    with pytest.raises(BuildError, match=reason):
        checkpoint_tokenizer.load(Checkpoint(folder))
