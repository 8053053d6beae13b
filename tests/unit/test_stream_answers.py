"""The last part of a stream, where Triton has no shared memory for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from python_mp.model.errors import RequestFailed
from tests.support.triton_stub import FINAL, InferenceRequest, load_triton

OUTPUTS = {"OUTPUT_IDS": np.ones((1, 3), np.int32)}


class Sender:
    """As Triton 24.10's: once a send had the flag, it takes nothing more, be it that it failed."""

    def __init__(self) -> None:
        self.has_room = True
        self.came: list[Any] = []
        self.is_closed = False

    def send(self, response: Any = None, *, flags: int) -> None:
        assert not self.is_closed
        self.is_closed = flags == FINAL
        if response is not None and not response.error and not self.has_room:
            raise RuntimeError("Failed to increase the shared memory pool size")
        self.came.append(response)

    def is_cancelled(self) -> bool:
        assert not self.is_closed
        return False


class Request(InferenceRequest):
    def __init__(self) -> None:
        super().__init__()
        self.sender = Sender()

    def get_response_sender(self) -> Any:
        return self.sender


@pytest.mark.parametrize("has_room", [True, False])
def test_the_last_part_or_an_error_ends_a_stream(
    has_room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request()
    kind: Any = load_triton("stream_answers", monkeypatch).TritonStream
    stream = kind(request, frozenset(OUTPUTS), None)
    stream.part(OUTPUTS)
    request.sender.has_room = has_room
    if has_room:
        stream.send(OUTPUTS)
    else:
        with pytest.raises(RuntimeError):
            stream.send(OUTPUTS)
        assert not stream.is_cancelled()
        stream.fail(RequestFailed("a part of the answer could not be sent"))
    assert request.sender.is_closed
    first, *rest = request.sender.came
    assert first.outputs["OUTPUT_IDS"].shape == (1, 3)
    if has_room:
        assert [rest[0].error, rest[1:]] == [None, [None]]
    else:
        assert ["could not be sent" in str(each.error) for each in rest] == [True]
    stream.fail(RequestFailed("too late"))
    assert not stream.is_cancelled()
