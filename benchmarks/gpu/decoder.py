"""What a decoder on a GPU gives: streams through the front, a rank and back.

    python -m benchmarks.gpu.decoder

A Llama shape of 1.1 G parameters in bfloat16 with random weights, one token a step for each stream
at 512 tokens of context. Of a step it says how long it takes between two tokens of a stream, and in
the rank. Without a GPU the same with a tiny model on the processor, to see that it runs.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu.json_lines import report
from python_mp.front.local import Local, served
from python_mp.model.config import ModelConfig
from python_mp.model.config_json import parse
from python_mp.model.errors import PythonMpError
from python_mp.sharding.families.task import Task

OUTPUTS = {"OUTPUT_IDS": "INT32", "FINISH_REASON": "STRING", "USAGE": "INT32"}
GPU = torch.cuda.is_available()
CONTEXT, NEW, MOST = (512, 96, 64) if GPU else (128, 96, 12)
SIZES: dict[str, Any] = (
    {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22}
    | {"num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000}
    if GPU
    else {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500}
)


class Part(NamedTuple):
    at: float
    tokens: int


class Stream:
    """Knows when its parts came."""

    keeps = False

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.over = Event()
        self.error: PythonMpError | None = None

    def part(self, outputs: Mapping[str, Any]) -> None:
        self.parts.append(Part(time.perf_counter(), outputs["OUTPUT_IDS"].size))

    def send(self, outputs: Mapping[str, Any]) -> None:
        self.part(outputs)
        self.over.set()

    def fail(self, error: PythonMpError) -> None:
        self.error = error
        self.over.set()

    def is_cancelled(self) -> bool:
        return False


def main() -> None:
    with TemporaryDirectory() as name:
        config = _config(Path(name))
        began = time.perf_counter()
        with served(config, Path(name)) as replica:
            report(serves_after_s=time.perf_counter() - began)
            _run(replica, MOST)  # For the graphs.
            time.sleep(5.0 if GPU else 0.0)
            for count in (1, 8, MOST):
                _measure(replica, count)


def _measure(replica: Local, count: int) -> None:
    before = replica.metrics().copy()
    streams = _run(replica, count)
    begin = max(stream.parts[0].at for stream in streams)  # All prompts are through.
    end = min(stream.parts[-1].at for stream in streams)
    parts = [part for stream in streams for part in stream.parts if begin < part.at <= end]
    assert parts, "the streams have never run all together"
    rate = sum(part.tokens for part in parts) / (end - begin)
    after = replica.metrics()
    spent, made = (
        after[name] - before[name]
        for name in (
            "python_mp_forward_seconds_sum{rank=0}",
            "python_mp_forward_seconds_count{rank=0}",
        )
    )
    report(
        sequences=count,
        ms_between_tokens=count / rate * 1e3,
        tokens_per_second=rate,
        step_in_the_rank_ms=spent / made * 1e3,  # prompts included
    )


def _run(replica: Local, count: int) -> list[Stream]:
    random = np.random.default_rng(count)
    streams = [Stream() for _ in range(count)]
    for stream in streams:
        prompt = random.integers(3, SIZES["vocab_size"], CONTEXT - NEW // 2).tolist()
        replica.stream(prompt, stream, max_tokens=NEW, ignore_eos=True)
    for stream in streams:
        assert stream.over.wait(120), "a stream got no end"
        if stream.error:
            raise stream.error
        assert sum(part.tokens for part in stream.parts) == NEW
    return streams


def _config(folder: Path) -> ModelConfig:
    """Of one rank on the first GPU, with a model of random weights."""
    version = folder / "1"
    version.mkdir()
    torch.manual_seed(0)
    llama = LlamaConfig(**SIZES, max_position_embeddings=2048)
    with torch.device("cuda" if GPU else "cpu"):
        model = AutoModelForCausalLM.from_config(llama, dtype=torch.bfloat16)
    llama.save_pretrained(version)
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    save_file(weights, version / "model.safetensors")
    Task("generate", context_length=2048, vocabulary=llama.vocab_size).write(version)
    kind: dict[str, Any] = {"kind": "KIND_GPU", "gpus": [0]} if GPU else {"kind": "KIND_CPU"}
    parameters = {"engine": "torch", "dtype": "bfloat16", "task": "generate"}
    parameters |= {"max_batch_tokens": "4096", "max_running_sequences": str(MOST)}
    raw = {
        "name": "decoder",
        "input": [
            {"name": "INPUT_IDS", "data_type": "TYPE_INT32", "dims": ["-1"]}
            | {"allow_ragged_batch": True}
        ],
        "max_batch_size": MOST,
        "output": [
            {"name": name, "data_type": f"TYPE_{dtype}", "dims": ["-1"]}
            for name, dtype in OUTPUTS.items()
        ],
        "model_transaction_policy": {"decoupled": True},
        "instance_group": [{"name": "lead", "count": 1, "passive": False, **kind}],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    return parse(json.dumps(raw), str(folder), "1")


if __name__ == "__main__":
    main()
