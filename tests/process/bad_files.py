"""What may be wrong with a model's files, for `test_bad_files`: title to content."""

import json
import struct
from typing import Any

from tests.support.checkpoints import CONFIG

START_SECONDS = 3
"""Of a load, once torch is imported."""
GOOD = """
import torch

class Times(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, batch, hidden):
        return {"Y": batch["X"] * self.weight}

def build(shard):
    return Times(shard.weights.full("w"))
"""
FIELDS: list[dict[str, Any]] = [
    {"files": ["rank0.safetensors"]},
    {"files": {"rank0.safetensors": {}}},
    {"layout": {}},
    {"hardware": None},
    {"inputs": None},
]


def file(header: bytes, length: int | None = None) -> bytes:
    """Of safetensors, with eight bytes of data."""
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(8)


def entry(shape: int, *offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [shape], "data_offsets": offsets}


SAFETENSORS = {
    "half a length": b"\1\0\0",
    "length 2^63": file(b"{}", 2**63),
    "deep": file(b"[" * 100_000),
    "offsets beyond the end": file(json.dumps({"w": entry(200, 0, 800)}).encode()),
    "overlapping": file(json.dumps({"w": entry(2, 0, 8), "v": entry(2, 0, 8)}).encode()),
    "other names": file(json.dumps({"v": entry(2, 0, 8)}).encode()),
}
SHAPES = [None, {"shapes": "{"}, {"shape": "{}"}, {"shapes": "[]"}]
"""Of the slices in a rank's file, what its metadata may say of their whole tensors."""

FITS = {"model_type", "type_vocab_size", "layer_norm_eps"}
"""Whose defaults fit these weights."""
NONSENSE: list[tuple[str, Any]] = [
    *(("hidden_size", value) for value in (2**40, -8, "8", None, float("nan"))),
    *(("num_attention_heads", value) for value in (0, 3, 2**40)),
    *(("num_hidden_layers", value) for value in (0, 10**9, 1.5, [])),
    *(("vocab_size", 2**62), ("max_position_embeddings", -1), ("layer_norm_eps", float("inf"))),
]
CONFIGS: list[Any] = [
    *({k: v for k, v in CONFIG.items() if k != key} for key in sorted(CONFIG.keys() - FITS)),
    *(CONFIG | {key: value} for key, value in NONSENSE),
    *([], None, 7),
]

RAISED = r"module\.py raised "
GONE = r"rank 0 (exited|was killed|raised|closed)"
SLOW = rf"did not load within {START_SECONDS} s"
MODULES: dict[str, tuple[str, str]] = {
    "is no Python": ("def build(:", RAISED + "SyntaxError"),
    "build is no function": ("build = 1", r"nor a function build\(shard\)"),
    "raises": ("raise ValueError('a\\nb\\n' * 1000)", RAISED + "ValueError: a b a b"),
    "imports by names of 0.1": (
        "from python_mp.rank.layers import RowParallelLinear",
        RAISED + r"ModuleNotFoundError: .*python_mp\.sharding",
    ),
    "raises what has no text": (
        "class Mute(Exception):\n    def __str__(self): raise self\nraise Mute",
        "Mute",
    ),
    "exits": ("import sys; sys.exit('I leave')", "SystemExit: I leave|" + GONE),
    "ends the process": ("import os; os._exit(0)", GONE),
    "kills its parent": ("import os, time; os.kill(os.getppid(), 9); time.sleep(60)", "times"),
    "stops itself": ("import os; os.kill(os.getpid(), 19)", SLOW),
    "ignores all": (
        "import signal\nfor n in (1, 2, 10, 15): signal.signal(n, signal.SIG_IGN)\n"
        "while True: signal.pause()",
        SLOW,
    ),
    "forks a daemon": (
        "import os, time\nif not os.fork(): os.setsid(); os.fork(); time.sleep(600)\n"
        "raise ValueError('forked')",
        RAISED + "ValueError: forked",
    ),
    "closes all": ("import os; os.closerange(0, 65536); raise ValueError", GONE + "|" + SLOW),
    "builds nothing": ("def build(shard): return None", "[Mm]odule"),
    "check is no function": (GOOD + "\ncheck = 7\n", "check"),
}
