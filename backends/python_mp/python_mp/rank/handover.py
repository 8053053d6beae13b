"""What a stage hands on to the next one: a tensor, or several by their names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..model.errors import LoadError
from .collectives import Communicator

Hidden = Tensor | Mapping[str, Tensor]


class Handover:
    """One end of the link to a neighbouring stage. The first batch's names go ahead of it; each
    further batch has the same, so that nothing more is said."""

    def __init__(self, communicator: Communicator, device: torch.device) -> None:
        self._communicator = communicator
        self._device = device
        self._names: list[str] | None = None
        self._is_open = False

    def send(self, result: Any) -> None:
        """Raises LoadError where it is neither a tensor nor a dict of some, or has other names than
        before."""
        names = _names(result)
        if not self._is_open:
            said = torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)
            self._communicator.send(said.to(self._device))
            self._names, self._is_open = names, True
        if names != self._names:
            raise LoadError(
                f"a stage handed on {_told(names)}, and before that {_told(self._names)}: it must"
                " be the same for every batch"
            )
        for each in (result,) if names is None else result.values():
            self._communicator.send(each.contiguous())

    def receive(self) -> Tensor | dict[str, Tensor]:
        if not self._is_open:
            said = bytes(self._communicator.receive().tolist())
            self._names, self._is_open = json.loads(said), True
        if self._names is None:
            return self._communicator.receive()
        return {name: self._communicator.receive() for name in self._names}


def _names(result: Any) -> list[str] | None:
    """None of a tensor."""
    if isinstance(result, Tensor):
        return None
    if isinstance(result, Mapping) and result:
        wrong = [name for name, each in result.items() if not isinstance(each, Tensor)]
        if not wrong and all(isinstance(name, str) for name in result):
            return list(result)
    raise LoadError(
        "a stage that is not the last must return the tensor to hand on, or a dict of some by name"
    )


def _told(names: list[str] | None) -> str:
    return "a tensor" if names is None else ", ".join(names)
