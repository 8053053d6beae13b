"""transformers' continuous batching, `generate_batch`, in this process, in float32. Each line is
[prompts, max_tokens]; the answer is [tokens, seconds].

    python -m benchmarks.generation.generate_batch CHECKPOINT
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def measured(model: Any, prompts: list[list[int]], most: int) -> tuple[int, float]:
    settings = GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=-1)
    began = time.perf_counter()
    found = model.generate_batch(prompts, settings, persistent_manager=True)
    seconds = time.perf_counter() - began
    return sum(len(each.generated_tokens) for each in found.values()), seconds


def main(checkpoint: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    for line in sys.stdin:
        print(json.dumps(measured(model, *json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
