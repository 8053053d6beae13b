"""What Triton says of a wrong request on a stream: its status, too, though in its text only."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from clients.at_once import cell
from clients.stream_errors import status_and_text, with_status
from server.process.launch import TritonServer

WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "no such model": ("nobody", {"TEXT": cell("a")}),
    "no input": ("embed_tokenizer", {}),
    "an input more": ("embed_tokenizer", {"TEXT": cell("a"), "X": cell("b")}),
    "another type": ("embed_tokenizer", {"TEXT": np.ones((1, 1), np.float32)}),
    "another shape": ("embed_tokenizer", {"TEXT": cell("a").repeat(2, 1)}),
    "a batch too large": ("embed_tokenizer", {"TEXT": cell("a").repeat(1000, 0)}),
    "in an ensemble": ("embed", {"TEXT": cell("a"), "X": cell("b")}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_stream_says_what_a_call_says(server: TritonServer, wrong: str) -> None:
    """Of the same request: the call has its status beside the text."""
    model, inputs = WRONG[wrong]
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with grpc.InferenceServerClient(server.endpoints.grpc_url) as client:
        tensors = [tensor(name, array) for name, array in inputs.items()]
        with pytest.raises(InferenceServerException) as called:
            client.infer(model, tensors)
        client.start_stream(lambda result, error: found.put(error))
        client.async_stream_infer(model, tensors)
        error = found.get(timeout=60)
        client.stop_stream()
    assert error.status() is None
    assert with_status(error).status() == called.value.status()
    assert with_status(error).message() == status_and_text(called.value.message())[1]


def tensor(name: str, array: Any) -> grpc.InferInput:
    made = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made
