"""What may be wrong with a model's files, for `test_bad_files`: title to content."""

from __future__ import annotations

import json
import platform
import struct
from typing import Any

from python_mp.manifest import FORMAT
from tests.engines.test_module import BERT

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
MANIFESTS: dict[str, str | bytes] = {
    "empty": "",
    "deep": "[" * 100_000,
    "not a number": "NaN",
    "null": "null",
    "only a format": json.dumps({"format": FORMAT}),
    "not UTF-8": b'{"format": "\xff"}',
}
FIELDS: dict[str, dict[str, Any]] = {
    "files a list": {"files": ["rank0.safetensors"]},
    "files none": {"files": None},
    "a file's record none": {"files": {"rank0.safetensors": None}},
    "a file's record empty": {"files": {"rank0.safetensors": {}}},
    "layout empty": {"layout": {}},
    "layout none": {"layout": None},
    "hardware none": {"hardware": None},
    "hardware empty": {"hardware": {}},
    "features a number": {"hardware": {"machine": platform.machine(), "cpu_features": 7}},
    "inputs none": {"inputs": None},
}


def packed(header: bytes, length: int | None = None, data: bytes = bytes(8)) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def header(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


SAFETENSORS = {
    "empty file": b"",
    "half a length": b"\1\0\0",
    "length 0": packed(b"", 0),
    "length beyond the end": packed(header(w=entry()), 10**6),
    "length 2^63": packed(header(w=entry()), 2**63),
    "length too short": packed(header(w=entry()), 10),
    "not JSON": packed(b"\xff" * 20),
    "a list": packed(b"[]"),
    "deep": packed(b"[" * 100_000),
    "no offsets": packed(header(w={"dtype": "F32", "shape": [2]})),
    "entry a number": packed(header(w=7)),
    "offsets beyond the end": packed(header(w=entry(shape=[200], offsets=[0, 800]))),
    "offsets reversed": packed(header(w=entry(offsets=[8, 0]))),
    "offsets negative": packed(header(w=entry(offsets=[-8, 0]))),
    "offsets 2^63": packed(header(w=entry(offsets=[2**63, 2**63 + 8]))),
    "overlapping": packed(header(w=entry(), v=entry())),
    "a gap": packed(header(w=entry(offsets=[8, 16])), data=bytes(16)),
    "more data than tensors": packed(header(w=entry()), data=bytes(80)),
    "unknown dtype": packed(header(w=entry("F99"))),
    "shape and bytes differ": packed(header(w=entry(shape=[3]))),
    "shape overflows": packed(header(w=entry(shape=[2**62, 4], offsets=[0, 0])), data=b""),
    "shape negative": packed(header(w=entry(shape=[-2]))),
    "shape no list": packed(json.dumps({"w": entry() | {"shape": "2"}}).encode()),
    "other names": packed(header(v=entry())),
}
SHAPES = {
    "none": None,
    "not JSON": {"shapes": "{"},
    "another key": {"shape": "{}"},
    "a list": {"shapes": "[]"},
}


CONFIGS: dict[str, Any] = {
    **{
        f"{key} missing": {k: v for k, v in BERT.items() if k != key}
        for key in BERT
        if key not in ("model_type", "layer_norm_eps")  # Whose defaults fit these weights.
    },
    **{
        f"{key} {value}": BERT | {key: value}
        for key, values in {
            "hidden_size": (2**40, -8, 0, "8", None, 8.5, float("nan")),
            "num_attention_heads": (0, -2, 3, "2", 2**40),
            "num_hidden_layers": (0, -1, 10**9, 1.5, []),
            "vocab_size": (-1, 0, 2**62, "16"),
            "max_position_embeddings": (-1, 0, 2**62, None),
            "layer_norm_eps": (float("nan"), float("inf"), -1, "x"),
        }.items()
        for value in values
    },
    "a list": [],
    "null": None,
    "a number": 7,
    "deep": None,
}


RAISED = r"module\.py raised "
GONE = r"rank 0 (exited|was killed|raised|closed)"
SLOW = rf"did not load within {START_SECONDS} s"
MODULES: dict[str, tuple[str, str]] = {
    "raises": ("raise ValueError('no such layer')", RAISED + "ValueError: no such layer"),
    "raises with a traceback": (
        "raise ValueError('a\\nb\\n' * 1000)",
        RAISED + "ValueError: a b a b",
    ),
    "raises what has no text": (
        "class Mute(Exception):\n    def __str__(self): raise self\nraise Mute",
        "Mute",
    ),
    "raises BaseException": ("raise BaseException('odd')", "BaseException: odd"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "exits": ("import sys; sys.exit('I leave')", "SystemExit: I leave|" + GONE),
    "exits with 0": ("import sys; sys.exit(0)", "SystemExit|" + GONE),
    "ends the process": ("import os; os._exit(0)", GONE),
    "crashes": ("import ctypes; ctypes.string_at(0)", GONE),
    "kills itself": ("import os; os.kill(os.getpid(), 9)", GONE),
    "kills its parent": ("import os, time; os.kill(os.getppid(), 9); time.sleep(60)", "times"),
    "stops itself": ("import os; os.kill(os.getpid(), 19)", SLOW),
    "sleeps": ("import time; time.sleep(600)", SLOW),
    "spins": ("while True: pass", SLOW),
    "ignores all": (
        "import signal\nfor n in (1, 2, 10, 15): signal.signal(n, signal.SIG_IGN)\n"
        "while True: signal.pause()",
        SLOW,
    ),
    "forks": (
        "import os, time\nif not os.fork(): time.sleep(600)\nraise ValueError('forked')",
        RAISED + "ValueError: forked",
    ),
    "forks and ends": ("import os, time\nif not os.fork(): time.sleep(600)\nos._exit(3)", GONE),
    "forks a daemon": (
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n"
        "        time.sleep(600)\n    os._exit(0)\nraise ValueError('forked')",
        RAISED + "ValueError: forked",
    ),
    "starts a program": (
        "import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "raise ValueError('started')",
        RAISED + "ValueError: started",
    ),
    "closes all": ("import os; os.closerange(0, 65536); raise ValueError", GONE + "|" + SLOW),
    "prints a lot": (
        "import sys\nsys.stdout.write('x' * (1 << 20))\nraise ValueError('printed')",
        RAISED + "ValueError: printed",
    ),
    "starts threads": (
        "import threading, time\n"
        "for _ in range(50): threading.Thread(target=time.sleep, args=[600]).start()\n"
        "raise ValueError('threads')",
        RAISED + "ValueError: threads",
    ),
    "changes directory": (
        "import os; os.chdir('/'); raise ValueError('elsewhere')",
        RAISED + "ValueError: elsewhere",
    ),
    "takes memory": ("x = bytearray(1 << 50)", "MemoryError"),
    "recurses": ("def f(): f()\nf()", RAISED + "RecursionError"),
    "builds no module": ("def build(shard): return 'no module'", "[Mm]odule"),
    "builds nothing": ("def build(shard): return None", "[Mm]odule"),
    "builds a class": ("import torch\ndef build(shard): return torch.nn.Linear", "[Mm]odule"),
    "check is no function": (GOOD + "\ncheck = 7\n", "check"),
}
