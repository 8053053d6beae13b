"""A checkpoint as ONNX Runtime's own tool for transformers makes it: attention, biases, GELU and
norms are fused into operators of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.transformers import optimizer
from transformers import AutoModel

from benchmarks.texts import CHECKPOINT


class _States(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids)[0]


def fused_graph(ids: np.ndarray[Any, Any]) -> Callable[[], object]:
    """Computes this one text, int32 [tokens], on all cores; the result is checked once."""
    model = AutoModel.from_pretrained(str(CHECKPOINT.path), attn_implementation="eager").eval()
    given = {"input_ids": ids[None].astype(np.int64)}
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    module = _States(model).eval()  # The exporter leaves it as it was.
    session = _session(module, tensors)
    with torch.no_grad():
        wanted = module(**tensors).numpy()
    found = session.run(None, given)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    return lambda: session.run(None, given)


def _session(module: torch.nn.Module, given: dict[str, torch.Tensor]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        plain, fused = Path(folder, "plain.onnx"), Path(folder, "fused.onnx")
        torch.onnx.export(
            module,
            tuple(given.values()),
            str(plain),
            input_names=list(given),
            dynamic_axes={name: {1: "tokens"} for name in given},
            dynamo=False,  # The tool knows the graphs of this exporter.
        )
        made = optimizer.optimize_model(str(plain), "bert", num_heads=12, hidden_size=384)
        made.save_model_to_file(str(fused))
        return onnxruntime.InferenceSession(str(fused), options)
