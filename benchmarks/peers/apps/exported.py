"""What a careful user of ONNX Runtime or OpenVINO writes around an exported sentence encoder.

Imported by each peer's program, in its own environment: needs numpy, tokenizers and the engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

PART = 8
"""Texts computed together. They are of similar length, so that little is padded."""
Array = np.ndarray[Any, Any]
Run = Callable[[Array, Array], Array]


class Encoder:
    """Texts to float32 [texts, width], of length 1.

    Args:
        folder: holds graph.onnx, of IDS and MASK INT64 [texts, tokens], and tokenizer.json.
        engine: "onnxruntime" or "openvino".
        threads: of the engine.
    """

    def __init__(self, folder: Path, engine: str, threads: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._run = ENGINES[engine](folder / "graph.onnx", threads)
        self(["warm up"])

    @classmethod
    def of_environment(cls) -> Encoder:
        """As ENCODER_FOLDER, ENCODER_ENGINE and ENCODER_THREADS say."""
        folder, engine, threads = (
            os.environ[f"ENCODER_{name}"] for name in ("FOLDER", "ENGINE", "THREADS")
        )
        return cls(Path(folder), engine, int(threads))

    def __call__(self, texts: list[str]) -> Array:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
        parts = [order[first : first + PART] for first in range(0, len(order), PART)]
        vectors = np.concatenate([self._run(*_padded([rows[n] for n in part])) for part in parts])
        return vectors[np.argsort(order)]


def _padded(rows: list[list[int]]) -> tuple[Array, Array]:
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = row
        mask[n, : len(row)] = 1
    return ids, mask


def _onnxruntime(graph: Path, threads: int) -> Run:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, ["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"IDS": ids, "MASK": mask})[0]


def _openvino(graph: Path, threads: int) -> Run:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    return lambda ids, mask: request.infer({"IDS": ids, "MASK": mask})[0].copy()


ENGINES = {"onnxruntime": _onnxruntime, "openvino": _openvino}
