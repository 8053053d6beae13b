"""BERT-large's shape with random weights, 256 texts of 128 tokens, against products alone.

python -m benchmarks.gpu.large
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from benchmarks.gpu.json_lines import report
from benchmarks.gpu.packed_attention import LONGEST, Lengths
from benchmarks.gpu.timing import device_seconds

TEXTS, HIDDEN, LAYERS = 256, 1024, 24
TOKENS = TEXTS * LONGEST
FLOP = TOKENS * LAYERS * (2 * 12 * HIDDEN**2 + 4 * LONGEST * HIDDEN)


def main() -> None:
    peak = products()
    config = BertConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        intermediate_size=4 * HIDDEN,
    )
    with torch.device("cuda"):
        model = BertModel(config, add_pooling_layer=False).eval().bfloat16()
    model.set_attn_implementation("packed")
    ids = torch.randint(0, 30000, (1, TOKENS), device="cuda")
    positions = (torch.arange(TOKENS, device="cuda") % LONGEST)[None]
    Lengths.cu_seqlens = torch.arange(TEXTS + 1, dtype=torch.int32, device="cuda") * LONGEST

    def eager() -> Tensor:
        hidden: Tensor = model(input_ids=ids, position_ids=positions).last_hidden_state
        return hidden

    for name, forward in (("eager", eager), ("compiled", torch.compile(eager, dynamic=False))):
        with torch.inference_mode():
            seconds = device_seconds(forward)
        report(
            how=name,
            texts=TEXTS,
            tokens_each=LONGEST,
            ms=seconds * 1e3,
            texts_per_second=TEXTS / seconds,
            tflops=FLOP / seconds / 1e12,
            of_products_alone=FLOP / seconds / peak,
        )


def products(size: int = 8192) -> float:
    """FLOP/s of square bfloat16 products."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    rate = 2 * size**3 / device_seconds(lambda: a @ a)
    report(products_alone_tflops=rate / 1e12)
    return rate


if __name__ == "__main__":
    main()
