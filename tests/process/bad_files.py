"""What may be wrong with a model's files, for `test_bad_files`: title to content."""

import json
import platform
import struct
from typing import Any

from python_mp.model.manifest import FORMAT
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
MANIFESTS: dict[str, bytes] = {
    "empty": b"",
    "deep": b"[" * 100_000,
    "not a number": b"NaN",
    "null": b"null",
    "only a format": json.dumps({"format": FORMAT}).encode(),
    "not UTF-8": b'{"format": "\xff"}',
}
FIELDS: list[dict[str, Any]] = [
    {"files": ["rank0.safetensors"]},
    {"files": None},
    {"files": {"rank0.safetensors": None}},
    {"files": {"rank0.safetensors": {}}},
    {"layout": {}},
    {"layout": None},
    {"hardware": None},
    {"hardware": {}},
    {"hardware": {"machine": platform.machine(), "cpu_features": 7}},
    {"inputs": None},
]


def packed(header: bytes, length: int | None = None, data: bytes = bytes(8)) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def file(data: bytes = bytes(8), **entries: Any) -> bytes:
    return packed(json.dumps(entries).encode(), data=data)


def w(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "empty file": b"",
    "half a length": b"\1\0\0",
    "length 0": packed(b"", 0),
    "length beyond the end": packed(b'{"w": {}}', 10**6),
    "length 2^63": packed(b'{"w": {}}', 2**63),
    "length too short": packed(b'{"w": {"dtype": "F32"}}', 10),
    "not JSON": packed(b"\xff" * 20),
    "a list": packed(b"[]"),
    "deep": packed(b"[" * 100_000),
    "no offsets": file(w={"dtype": "F32", "shape": [2]}),
    "entry a number": file(w=7),
    "offsets beyond the end": file(w=w(shape=[200], offsets=[0, 800])),
    "offsets reversed": file(w=w(offsets=[8, 0])),
    "offsets negative": file(w=w(offsets=[-8, 0])),
    "offsets 2^63": file(w=w(offsets=[2**63, 2**63 + 8])),
    "overlapping": file(w=w(), v=w()),
    "a gap": file(bytes(16), w=w(offsets=[8, 16])),
    "more data than tensors": file(bytes(80), w=w()),
    "unknown dtype": file(w=w("F99")),
    "shape and bytes differ": file(w=w(shape=[3])),
    "shape overflows": file(b"", w=w(shape=[2**62, 4], offsets=[0, 0])),
    "shape negative": file(w=w(shape=[-2])),
    "shape no list": file(w=w(shape="2")),
    "other names": file(v=w()),
}
SHAPES = [None, {"shapes": "{"}, {"shape": "{}"}, {"shapes": "[]"}]
"""Of the slices in a rank's file, what its metadata may say of their whole tensors."""

FITTING_DEFAULTS = ("model_type", "type_vocab_size", "layer_norm_eps")
"""Whose defaults fit these weights."""
NONSENSE: dict[str, tuple[Any, ...]] = {
    "hidden_size": (2**40, -8, 0, "8", None, 8.5, float("nan")),
    "num_attention_heads": (0, -2, 3, "2", 2**40),
    "num_hidden_layers": (0, -1, 10**9, 1.5, []),
    "vocab_size": (-1, 0, 2**62, "16"),
    "max_position_embeddings": (-1, 0, 2**62, None),
    "layer_norm_eps": (float("nan"), float("inf"), -1, "x"),
    "model_type": ("roberta",),
}
_NEEDED = CONFIG.keys() - FITTING_DEFAULTS
CONFIGS: list[Any] = [
    *({k: v for k, v in CONFIG.items() if k != key} for key in sorted(_NEEDED)),
    *(CONFIG | {key: value} for key, values in NONSENSE.items() for value in values),
    *([], None, 7),
]

RAISED = r"module\.py raised "
GONE = r"rank 0 (exited|was killed|raised|closed)"
SLOW = rf"did not load within {START_SECONDS} s"
FORK = "import os, time\nif not os.fork(): {}time.sleep(600)\n"
MODULES: dict[str, tuple[str, str]] = {
    "is no Python": ("def build(:", RAISED + "SyntaxError"),
    "has no build": ("built = 1", r"has no function build\(shard\)"),
    "build is no function": ("build = 1", r"has no function build\(shard\)"),
    "raises": ("raise ValueError('a\\nb\\n' * 1000)", RAISED + "ValueError: a b a b"),
    "imports by names of 0.1": (
        "from python_mp.rank.layers import RowParallelLinear",
        RAISED + r"ModuleNotFoundError: .*python_mp\.sharding",
    ),
    "raises what has no text": (
        "class Mute(Exception):\n    def __str__(self): raise self\nraise Mute",
        "Mute",
    ),
    "raises BaseException": ("raise BaseException('odd')", "BaseException: odd"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "exits": ("import sys; sys.exit('I leave')", "SystemExit: I leave|" + GONE),
    "ends the process": ("import os; os._exit(0)", GONE),
    "crashes": ("import ctypes; ctypes.string_at(0)", GONE),
    "kills its parent": ("import os, time; os.kill(os.getppid(), 9); time.sleep(60)", "times"),
    "stops itself": ("import os; os.kill(os.getpid(), 19)", SLOW),
    "ignores all": (
        "import signal\nfor n in (1, 2, 10, 15): signal.signal(n, signal.SIG_IGN)\n"
        "while True: signal.pause()",
        SLOW,
    ),
    "forks and ends": (FORK.format("") + "os._exit(3)", GONE),
    "forks a daemon": (
        FORK.format("os.setsid(); os.fork(); ") + "raise ValueError('forked')",
        RAISED + "ValueError: forked",
    ),
    "closes all": ("import os; os.closerange(0, 65536); raise ValueError", GONE + "|" + SLOW),
    "takes memory": ("x = bytearray(1 << 50)", "MemoryError"),
    "recurses": ("def f(): f()\nf()", RAISED + "RecursionError"),
    "builds nothing": ("def build(shard): return None", "[Mm]odule"),
    "builds a class": ("import torch\ndef build(shard): return torch.nn.Linear", "[Mm]odule"),
    "check is no function": (GOOD + "\ncheck = 7\n", "check"),
}
