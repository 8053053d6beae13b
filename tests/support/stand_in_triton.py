"""Triton's gRPC in this process, with models of which each answer is plain to see: tokens are the
bytes of a text, and what is generated says the prompt again and again."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

ADMIN = ("triton-grpc-protocol-triton-admin", "the-admin-token")
ROWS, CONTEXT = 3, 4000
TASKS = {"vectors": "embed", "judge": "rerank", "talk": "generate", "sort": "classify"}
STEPS = {
    "vectors": ("vectors_tokenizer", "vectors_encoder", "vectors_vectors"),
    "judge": ("judge_tokenizer", "judge_encoder", "judge_scores"),
    "talk": ("talk_prompt", "talk_decoder", "talk_text"),
    "sort": ("sort_tokenizer",),
}
FAULTS = {
    "[full]": (grpc.StatusCode.UNAVAILABLE, "the queue is full (256 requests); try again"),
    "[restarting]": (grpc.StatusCode.UNAVAILABLE, "its ranks are being restarted"),
    "[poison]": (grpc.StatusCode.INTERNAL, "this request has ended two groups of ranks"),
}
"""What a text with the word is answered."""
SLOW, SLOW_SECONDS = b"[slow]", 0.5
"""A text with the word is answered so late, and so each part."""
Array = NDArray[Any]
Tensors = Mapping[str, Array]


class Refused(Exception):
    def __init__(
        self, text: str, status: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    ) -> None:
        super().__init__(text)
        self.status = status


def _on_stream(error: Refused) -> str:
    """As of a step of the ensemble, which is our backend's."""
    status = error.status.name.replace("INVALID_ARGUMENT", "INVALID_ARG")
    return f"[request id: <id_unknown>] in ensemble 'talk', {status}: {error}"


def check(text: bytes) -> None:
    """Raises Refused for a text that asks for it."""
    for word, (status, why) in FAULTS.items():
        if word.encode() in text:
            raise Refused(why, status)


def vector(text: str, width: int = 4) -> list[float]:
    """What the model `vectors` gives."""
    return [float(len(text)), float(len(text.split())), 0.5, -1.0][:width]


def score(query: str, text: str) -> float:
    """How many words they share: what `judge` gives."""
    return float(len({*query.split()} & {*text.split()}))


def said(prompt: str, count: int) -> str:
    """What `talk` answers with so many tokens. A character that has not ended is U+FFFD."""
    raw = prompt.encode()
    return (raw * (count // len(raw) + 1))[:count].decode(errors="replace")


def rendered(messages: Sequence[Mapping[str, Any]]) -> str:
    """The chat template of `talk`."""
    return "".join(f"{each['role']}:{each['content']};" for each in messages)


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """
    Attributes:
        asked: parameters of each stream, in their order.
        left: names of models whose streams were left, by their key.
        deaf: so many requests to leave are passed over.
        cancelled: names of models whose streams were cancelled.
        is_open: to whom the list of models is open: everybody, or who has the token.
        is_frozen, is_mute, is_leaving: it says nothing at all; its models say nothing; it says no
            more of its models than their names.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.left: asyncio.Queue[str] = asyncio.Queue()
        self.deaf = 0
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.is_open = True
        self.is_frozen = self.is_mute = self.is_leaving = False
        self.calls: list[str] = []
        self._leaving: dict[str, asyncio.Event] = {}

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._thawed()
        return service_pb2.ServerLiveResponse(live=True)

    async def _thawed(self, *, model: bool = False) -> None:
        while self.is_frozen or (model and self.is_mute):
            await asyncio.sleep(0.01)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        await self._thawed()
        found = service_pb2.RepositoryIndexResponse()
        for name in (*TASKS, *(step for steps in STEPS.values() for step in steps)):
            found.models.add(name=name, version="1", state="READY")
        found.models.add(name="coming", version="1", state="LOADING")
        found.models.add(name="gone", version="1", state="UNAVAILABLE", reason="unloaded")
        return found

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        if self.is_leaving:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=ROWS)
        if request.name in TASKS:
            config.platform = "ensemble"
            config.parameters["task"].string_value = TASKS[request.name]
            for step in STEPS[request.name]:
                config.ensemble_scheduling.step.add(model_name=step)
        return service_pb2.ModelConfigResponse(config=config)

    async def _admit(self, context: Any) -> None:
        if not self.is_open and ADMIN not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted")

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append(request.model_name)
        await self._thawed(model=True)
        if any(SLOW in raw for raw in request.raw_input_contents):
            await asyncio.sleep(SLOW_SECONDS)
        tensors = _read(request)
        if "leave" in request.parameters:
            self._leave(_value(request.parameters["leave"]))
        try:
            return _written(request.model_name, _infer(request.model_name, tensors))
        except Refused as error:
            await context.abort(error.status, f"[request id: <id_unknown>] {error}")

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:  # noqa: N802
        async for request in requests:
            asked = {name: _value(it) for name, it in request.parameters.items()}
            key = asked.pop("leave_key")
            self.asked.append(asked)
            left = self._leaving[key] = asyncio.Event()
            try:
                async for outputs in self._parts(request, left):
                    whole = _written(request.model_name, outputs)
                    yield service_pb2.ModelStreamInferResponse(infer_response=whole)
            except Refused as error:
                yield service_pb2.ModelStreamInferResponse(error_message=_on_stream(error))
            except asyncio.CancelledError:
                self.cancelled.put_nowait(request.model_name)
                raise
            finally:
                del self._leaving[key]
            if left.is_set():
                self.left.put_nowait(request.model_name)

    def _leave(self, key: str) -> None:
        if self.deaf:
            self.deaf -= 1
        elif key in self._leaving:
            self._leaving[key].set()

    async def _parts(self, request: Any, left: asyncio.Event) -> AsyncIterator[Tensors]:
        tensors, parameters = _read(request), self.asked[-1]
        is_chat = request.model_name == "talk"
        ids = tensors.get("INPUT_IDS")
        prompt = _prompt(tensors) if ids is None else bytes(ids.ravel().tolist())
        check(prompt)
        most = int(parameters.get("max_tokens", 8))
        if len(prompt) + most > CONTEXT:
            raise Refused(
                f"the prompt has {len(prompt)} tokens, with max_tokens {most} "
                f"{len(prompt) + most}; the model's context has {CONTEXT}"
            )
        for place in range(most):
            await self._thawed(model=True)
            if SLOW in prompt:
                await asyncio.sleep(SLOW_SECONDS)
            if b"[hang]" in prompt and place:
                await left.wait()
                raise Refused("the client has cancelled the request", grpc.StatusCode.CANCELLED)
            if b"[cut]" in prompt and place:
                return
            if b"[fail]" in prompt and place:
                raise Refused("the model's logits are not numbers", grpc.StatusCode.INTERNAL)
            yield _part(prompt, place, most, parameters, is_chat)


def _infer(model: str, given: Tensors) -> Tensors:
    if model.endswith("_tokenizer"):
        rows = zip(*(array.ravel() for array in given.values()), strict=True)
        return {"LENGTHS": np.array([[sum(map(len, row))] for row in rows], np.int32)}
    if model == "talk_prompt":
        return {"INPUT_IDS": np.array([[*_prompt(given)]], np.int32)}
    if model == "talk_text":
        names = "CONTEXT_IDS", "OUTPUT_IDS"
        context, ids = (bytes(given[name][given[name] >= 0].tolist()) for name in names)
        return {"ANSWER": _cell(_added(context, ids, bool(given["FINISH_REASON"].item())))}
    for text in given["TEXT"].ravel():
        check(text)
    texts = [text.decode() for text in given["TEXT"].ravel()]
    if model == "judge":
        queries = [text.decode() for text in given["QUERY"].ravel()]
        rows = zip(queries, texts, strict=True)
        return {"SCORE": np.array([[score(*row)] for row in rows], np.float32)}
    width = int(given["DIMENSIONS"].max()) if "DIMENSIONS" in given else 4
    if width > 4:
        raise Refused(f"DIMENSIONS is {width}; the vectors have 4")
    return {"EMBEDDING": np.array([vector(text, width) for text in texts], np.float32)}


def _prompt(given: Tensors) -> bytes:
    ((name, text),) = given.items()
    if name == "TEXT":
        return bytes(text.item())
    talk = json.loads(text.item())["messages"]
    if any(each["role"] == "alien" for each in talk):
        raise Refused("MESSAGES[0] has the role 'alien', which the template passes over.")
    return rendered(talk).encode()


def _part(
    prompt: bytes, place: int, most: int, parameters: Mapping[str, Any], is_chat: bool
) -> Tensors:
    own = prompt[place % len(prompt)]
    before = bytes(prompt[each % len(prompt)] for each in range(max(0, place - 8), place))
    is_last = place + 1 == most
    outputs: dict[str, Array] = {
        "OUTPUT_IDS": np.array([[own]], np.int32),
        "FINISH_REASON": _cell("length" if is_last else ""),
        "USAGE": np.array([[len(prompt), place + 1, 2]], np.int32),
    }
    if is_chat:
        return outputs | {"ANSWER": _cell(_added(before, bytes([own]), is_last))}
    top = int(parameters.get("logprobs", 0))
    ids = [(own + each) % 128 for each in range(top)]
    outputs["CONTEXT_IDS"] = np.array([[*before] or [-1]], np.int32)
    outputs["TRIM"] = np.zeros((1, 1), np.int32)
    if "logprobs" in parameters:
        outputs["LOGPROBS"] = np.array([[-0.5]], np.float32)
    if top:  # As of the model: there is nothing of what was not asked for.
        outputs["TOP_IDS"] = np.array([[ids]], np.int32)
        outputs["TOP_LOGPROBS"] = np.array([[[-0.5 - each for each in range(top)]]], np.float32)
    return outputs


def _added(before: bytes, ids: bytes, is_last: bool) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(before)
    return decoder.decode(ids) + decoder.decode(b"", is_last)


def _cell(text: str) -> Array:
    return np.array([[text.encode()]], np.object_)


def _read(request: Any) -> dict[str, Array]:
    found = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            array = deserialize_bytes_tensor(raw)
        else:
            array = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype))
        found[tensor.name] = array.reshape(tensor.shape)
    return found


def _written(model: str, outputs: Tensors) -> Any:
    made = service_pb2.ModelInferResponse(model_name=model, model_version="1")
    for name, array in outputs.items():
        kind = np_to_triton_dtype(array.dtype)
        made.outputs.add(name=name, datatype=kind, shape=array.shape)
        raw = serialize_byte_tensor(array).item() if kind == "BYTES" else array.tobytes()
        made.raw_output_contents.append(raw)
    return made


def _value(parameter: Any) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice"))
