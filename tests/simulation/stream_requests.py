"""Requests for streams: what becomes of their parts, and what they should have been."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any

from tests.support.streams import EOS, expected
from tests.support.triton_stub import FINAL, InferenceResponse

from .modules import here
from .simulated import Asked
from .triton import InferenceRequest, Outputs, ResponseSender

OUTPUTS = ["OUTPUT_IDS", "FINISH_REASON", "USAGE"]
UNSENDABLE = "no shared memory is left"


@dataclass(eq=False)
class StreamRequest(InferenceRequest):
    settings: dict[str, Any] = field(default_factory=dict)
    parts: list[Outputs] = field(default_factory=list)
    last: float = 0.0
    """When the latest part came."""
    unsendable: bool = False
    """Its next part fails; nothing but an error may come then."""

    def parameters(self) -> str:
        return json.dumps(self.settings)

    def requested_output_names(self) -> list[str]:
        return OUTPUTS

    def get_response_sender(self) -> ResponseSender:
        return StreamSender(self)


class StreamSender(ResponseSender):
    _request: StreamRequest

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        here.machine.wobble()
        request = self._request
        if request.answers:
            request.faults.append("a response after the last one")
        if request.unsendable and flags != FINAL:
            if request.last < 0:
                request.faults.append("a part after one that was lost")
            request.last = -1.0
            raise RuntimeError(UNSENDABLE)
        if response and not response.error:
            request.parts.append(response.outputs)
            request.last = here.machine.now
        if flags == FINAL:
            request.arrive(response or InferenceResponse())


@dataclass(eq=False, repr=False, kw_only=True)
class Stream(Asked):
    """One that was asked for."""

    prompt: list[int]
    most: int
    version: int
    request: StreamRequest
    ends: int
    """Of ranks, before it came."""
    left: float = inf
    """When its client went."""

    def __repr__(self) -> str:
        return f"stream of {self.prompt[:3]}..., {self.most} tokens ({self.kind})"

    def was_open(self, since: float) -> bool:
        """At that time or later."""
        answers = self.request.answers
        return answers[0].at > since if answers else not self.lost

    @property
    def ids(self) -> list[int]:
        return [t for part in self.request.parts for t in part["OUTPUT_IDS"][0].tolist()]

    @cached_property
    def wanted(self) -> list[int]:
        seed = self.request.settings.get("seed", 0)
        return expected(self.prompt, self.most, seed=seed, eos=eos_of(self.version))


def eos_of(version: int) -> int:
    """Each third version is another model."""
    return EOS + version // 3
