"""GGUF files become folders with the same weights, the same tokens and the same ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from build_scripts import gguf_folder
from build_scripts.errors import BuildError
from tests.unit.test_tokenizer_kinds import byte_level

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
HEADS, KV_HEADS = 4, 2
Kind = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level("<s>", "</s>", "<end>")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": size}
    return LlamaForCausalLM(LlamaConfig(**heads, **sizes, initializer_range=0.2)).eval()


def in_pairs(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp turns neighbours in rotary embeddings, transformers the halves of a head."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def written(
    path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, kind: Kind, splits: str
) -> Path:
    config, file = model.config, gguf.GGUFWriter(path, "llama")
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(128)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KV_HEADS)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(splits)
    tokens = [tokenizer.id_to_token(each) for each in range(config.vocab_size)]
    file.add_token_list(tokens)
    file.add_token_types([3 if each < 3 else 1 for each in range(len(tokens))])
    file.add_token_merges([" ".join(each) for each in _merges(tokenizer)])
    file.add_bos_token_id(0)
    file.add_eos_token_id(1)
    file.add_eot_token_id(2)
    file.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            array = in_pairs(array, heads) if part in name else array
        how = kind if array.ndim == 2 else Kind.F32
        data = gguf.quants.quantize(np.ascontiguousarray(array), how)
        file.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=how)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    found: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return found


def test_weights_tokens_and_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
) -> None:
    monkeypatch.setattr(gguf_folder, "KEPT", tmp_path / "kept")
    (place := tmp_path / "there").mkdir()
    written(place / "a.gguf", model, tokenizer, Kind.Q8_0, "smollm")
    folder = gguf_folder.of(place)
    assert gguf_folder.of(place / "a.gguf") == folder == gguf_folder.of(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=0.02, rtol=0)
    assert theirs.generation_config.eos_token_id == [1, 2]
    assert theirs.config.architectures == ["LlamaForCausalLM"]
    found = AutoTokenizer.from_pretrained(folder)
    assert (found.chat_template, found.model_max_length) == (TEMPLATE, 128)
    digits, rest = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    for text in ("a  12 b", "the vectors' <end> names", "Grüße \n\n 中文"):
        assert found(text)["input_ids"] == tokenizer.encode(text).ids


Change = Callable[[Path], object]
REFUSED: dict[str, tuple[Change, str]] = {
    "damaged": (lambda file: file.write_bytes(file.read_bytes()[:5000]), "no GGUF file, or damag"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-9000]), "no GGUF file, or damaged"),
    "splits": (lambda _: None, "splits texts as 'odd'"),
    "two": (lambda file: (file.parent / "b.gguf").touch(), "a.gguf, b.gguf: name one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    case: str,
) -> None:
    change, said = REFUSED[case]
    monkeypatch.setattr(gguf_folder, "KEPT", tmp_path / "kept")
    change(written(tmp_path / "a.gguf", model, tokenizer, Kind.F32, "odd"))
    with pytest.raises(BuildError, match=said):
        gguf_folder.of(tmp_path)
    assert not [*tmp_path.glob("kept/*")]
