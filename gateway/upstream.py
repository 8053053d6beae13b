"""Triton, over gRPC."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import np_to_triton_dtype

from clients.proxy import SIZES, direct
from gateway.errors import ApiError
from gateway.silence import Limits, Patience
from gateway.stream_call import FOREIGN, StreamCall
from gateway.translating import Names, translated
from server.token import METADATA

Array = NDArray[Any]
Inputs = Mapping[str, Array]
Parameters = Mapping[str, str | int | bool]
CLOSE_SECONDS = 5.0
NO_PART: Inputs = {
    "OUTPUT_IDS": np.zeros((1, 1), np.int32),
    "CONTEXT_IDS": np.full((1, 1), -1, np.int32),
    "FINISH_REASON": np.array([[b"stop"]], np.object_),
    "TRIM": np.zeros((1, 1), np.int32),
}
"""For the step that makes text of parts, where it is to be told something only."""


@dataclass(frozen=True)
class Triton:
    """All methods raise ApiError.

    Args:
        admin_token: opens the list of models and their configs.
        names: what the clients of an endpoint call Triton's tensors and parameters, for errors.
        left: streams that nobody reads any more, until they have ended.
    """

    client: InferenceServerClient
    patience: Patience
    admin_token: str = field(default="", repr=False)
    names: Names = field(default_factory=dict)
    left: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def at(cls, url: str, admin_token: str, limits: Limits) -> Triton:
        own = direct(url).get("channel_args", SIZES)
        client = InferenceServerClient(url, channel_args=[*own, *_link(limits)])
        return cls(client, Patience(limits, client.is_server_live), admin_token)

    def named(self, **names: str) -> Triton:
        """The same for one endpoint."""
        return replace(self, names=names)

    @property
    def _admin(self) -> dict[str, str]:
        return {METADATA: self.admin_token} if self.admin_token else {}

    async def index(self) -> Sequence[Any]:
        """Entries with `name`, `version`, `state` and `reason`."""
        try:
            found = await self.client.get_model_repository_index(headers=self._admin)
        except FOREIGN as error:
            raise translated(error, {}) from error
        return list(found.models)

    async def config(self, name: str) -> Any:
        """Its config, as protobuf."""
        try:
            return (await self.client.get_model_config(name, headers=self._admin)).config
        except FOREIGN as error:
            raise translated(error, {}) from error

    async def infer(
        self, model: str, inputs: Inputs, output: str, parameters: Parameters | None = None
    ) -> Array:
        wanted = [InferRequestedOutput(output)]
        asked = self.client.infer(model, _tensors(inputs), outputs=wanted, parameters=parameters)
        try:
            found = await self.patience.wait(asked)
        except FOREIGN as error:
            raise translated(error, self.names) from error
        return np.asarray(found.as_numpy(output))

    async def stream(
        self, model: str, inputs: Inputs, parameters: Parameters, text: str
    ) -> AsyncGenerator[Any, None]:
        """tritonclient's results, as they come. Whoever closes this leaves the stream.

        Args:
            text: the ensemble's last step, which is told of that.
        """
        key = secrets.token_hex(16)
        more = {**parameters, "leave_key": key}
        request = {"model_name": model, "inputs": _tensors(inputs), "parameters": more}

        async def tell() -> None:
            with suppress(ApiError):
                await self.infer(text, NO_PART, "ANSWER", {"leave": key})

        call = StreamCall(self.client, request, tell)
        try:
            while (result := await self.patience.wait(call.next())) is not None:
                yield result
        except FOREIGN as error:
            raise translated(error, self.names) from error
        finally:
            task = asyncio.create_task(call.leave())
            self.left.add(task)
            task.add_done_callback(self.left.discard)

    async def close(self) -> None:
        """What was left is given a moment."""
        if self.left:
            await asyncio.wait(self.left, timeout=CLOSE_SECONDS)
        await self.client.close()


def _link(limits: Limits) -> list[tuple[str, int]]:
    """Options of gRPC by which a dead link is noticed: what is sent and not acknowledged for so
    long ends it (TCP_USER_TIMEOUT). Pings play no part: Triton hangs up on who sends more than one
    in five minutes, and of a Triton that is frozen, or stands behind an nginx, they say nothing."""
    silence = round(1000 * limits.triton)
    return [("grpc.keepalive_time_ms", 600_000), ("grpc.keepalive_timeout_ms", silence)]


def _tensors(inputs: Inputs) -> list[InferInput]:
    made = []
    for name, array in inputs.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def texts(*rows: str) -> Array:
    """BYTES [rows, 1]."""
    return np.array([[row.encode()] for row in rows], np.object_)
