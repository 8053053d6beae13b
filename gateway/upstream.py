"""Triton, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from clients.proxy import direct
from gateway.translating import Names, translated
from server.token import METADATA

Array = NDArray[Any]
Inputs = Mapping[str, Array]
Parameters = Mapping[str, str | int | bool]
STRICT = {"triton_grpc_error": "true"}
"""A stream ends with the status of its error; without it there would be its text only."""
FOREIGN = (InferenceServerException, grpc.RpcError)


@dataclass(frozen=True)
class Triton:
    """All methods raise ApiError.

    Args:
        admin_token: opens the list of models and their configs.
        names: what the clients of an endpoint call Triton's tensors and parameters, for errors.
    """

    client: InferenceServerClient
    admin_token: str = field(default="", repr=False)
    names: Names = field(default_factory=dict)

    @classmethod
    def at(cls, url: str, admin_token: str) -> Triton:
        return cls(InferenceServerClient(url, **direct(url)), admin_token)

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

    async def infer(self, model: str, inputs: Inputs, output: str) -> Array:
        try:
            found = await self.client.infer(
                model, _tensors(inputs), outputs=[InferRequestedOutput(output)]
            )
        except FOREIGN as error:
            raise translated(error, self.names) from error
        return np.asarray(found.as_numpy(output))

    async def stream(
        self, model: str, inputs: Inputs, parameters: Parameters
    ) -> AsyncGenerator[Any, None]:
        """tritonclient's results, as they come. Whoever closes this cancels the request."""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model, "inputs": _tensors(inputs), "parameters": dict(parameters)}

        call = self.client.stream_infer(requests(), headers=STRICT)
        try:
            async for result, error in call:
                if error:
                    raise error
                yield result
        except FOREIGN as error:
            raise translated(error, self.names) from error
        finally:
            call.cancel()


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
