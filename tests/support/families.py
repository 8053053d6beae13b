"""Tiny random Hugging Face models of many families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 70,
    "vocab_size": 99,
    "max_position_embeddings": 128,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
IMAGE = {
    **{name: TEXT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
    "image_size": 32,
    "patch_size": 8,
}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOW = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}


@dataclass(frozen=True)
class Family:
    """One of transformers' model classes and the values of its config.

    Attributes:
        exact: transformers' own attention that is the reference.
    """

    model: str
    config: str
    values: Mapping[str, Any]
    exact: str = "sdpa"

    @property
    def takes_images(self) -> bool:
        return "image_size" in self.values

    def with_head(self, task: str) -> Family:
        """Its class for the task, with five classes."""
        stem = self.model.removesuffix("Model").removesuffix("Vision")
        values = {**self.values, "num_labels": 5, "pad_token_id": 0}
        ending = "ForImageClassification" if self.takes_images else ENDINGS[task]
        return replace(self, model=f"{stem}{ending}", values=values)

    def make(self, seed: int = 0) -> Any:
        """A model with weights large enough that every part of it shows."""
        import transformers

        config = getattr(transformers, self.config)(**self.values)
        config._attn_implementation = self.exact
        torch.manual_seed(seed)
        model = getattr(transformers, self.model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                if parameter.dim() > 1:  # Wider ones would make outputs grow with each layer.
                    parameter.copy_(noise * min(0.2, 1.4 * max(parameter[0].numel(), 1) ** -0.5))
                else:
                    parameter.add_(noise * 0.1)
        return model


FAMILIES = {
    "bert": Family("BertModel", "BertConfig", TEXT),
    "roberta": Family("RobertaModel", "RobertaConfig", TEXT),
    "xlm_roberta": Family("XLMRobertaModel", "XLMRobertaConfig", TEXT),
    "distilbert": Family(
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 70, "vocab_size": 99},
    ),
    "electra": Family("ElectraModel", "ElectraConfig", {**TEXT, "embedding_size": 32}),
    "modernbert": Family(
        "ModernBertModel",
        "ModernBertConfig",
        {
            **TEXT,
            **MARKS,
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    "t5": Family(
        "T5EncoderModel",
        "T5Config",
        {
            "d_model": 48,
            "d_kv": 12,
            "d_ff": 70,
            "num_heads": 4,
            "num_layers": 3,
            "vocab_size": 99,
        },
    ),
    "eurobert": Family("EuroBertModel", "EuroBertConfig", {**GROUPED, **MARKS, "mask_token_id": 3}),
    "gpt2": Family(
        "GPT2Model",
        "GPT2Config",
        {
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 70,
            "vocab_size": 99,
            "n_positions": 128,
        },
    ),
    "gpt_neox": Family("GPTNeoXModel", "GPTNeoXConfig", TEXT),
    "llama": Family("LlamaModel", "LlamaConfig", GROUPED),
    "mistral": Family("MistralModel", "MistralConfig", {**GROUPED, "sliding_window": 8}),
    "qwen2": Family("Qwen2Model", "Qwen2Config", GROUPED),
    "qwen3": Family("Qwen3Model", "Qwen3Config", {**GROUPED, "head_dim": 16}),
    "gemma2": Family("Gemma2Model", "Gemma2Config", {**GROUPED, **WINDOW}, "eager"),
    "gemma3": Family("Gemma3TextModel", "Gemma3TextConfig", {**GROUPED, **WINDOW}),
    "phi": Family("PhiModel", "PhiConfig", TEXT),
    "mpnet": Family("MPNetModel", "MPNetConfig", TEXT, "eager"),
    "deberta_v2": Family(
        "DebertaV2Model",
        "DebertaV2Config",
        {
            **TEXT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "conv_kernel_size": 3,
        },
        "eager",
    ),
    "vit": Family("ViTModel", "ViTConfig", {**IMAGE, "intermediate_size": 70}),
    "dinov2": Family("Dinov2Model", "Dinov2Config", {**IMAGE, "mlp_ratio": 2}),
    "siglip": Family("SiglipVisionModel", "SiglipVisionConfig", {**IMAGE, "intermediate_size": 70}),
    "clip": Family("CLIPVisionModel", "CLIPVisionConfig", {**IMAGE, "intermediate_size": 70}),
}
HEADS = {
    "classify": (
        *("bert", "xlm_roberta", "distilbert", "modernbert", "deberta_v2", "llama"),
        *("vit", "dinov2"),
    ),
    "tokens": ("bert", "roberta", "modernbert", "deberta_v2"),
}
"""Families tried with each kind of head."""
ENDINGS = {"classify": "ForSequenceClassification", "tokens": "ForTokenClassification"}
LENGTHS = (7, 23, 1, 40, 12)


def asked(family: Family, model: Any, lowest: int = 3) -> tuple[dict[str, Any], torch.Tensor]:
    """A batch of texts or images, and what the model itself makes of it, one at a time."""
    random = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        if family.takes_images or model.main_input_name == "pixel_values":
            images = torch.randn(3, 3, 32, 32, generator=random)
            found = [model(pixel_values=image[None])[0] for image in images]  # states, or logits
            if found[0].dim() == 4:  # of convolutions
                found = [each.flatten(2).transpose(1, 2) for each in found]
            return {"PIXEL_VALUES": images.numpy()}, torch.cat(found)
        ids = torch.randint(lowest, 99, (sum(LENGTHS),), generator=random)
        found = [model(input_ids=each[None])[0] for each in ids.split(list(LENGTHS))]
        found = [each[0] if each.dim() == 3 else each for each in found]  # or logits of a text
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    return {"INPUT_IDS": ids.int().numpy(), "cu_seqlens": ends.int().numpy()}, torch.cat(found)
