"""Texts as they are generated: a stream of Triton's for each, and several of them as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from gateway import token_texts
from gateway.errors import ApiError
from gateway.registry import Model
from gateway.token_texts import Token
from gateway.upstream import Array, Inputs, Parameters, Triton


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        text: what it adds to the answer.
        finish_reason: "stop" or "length"; empty but in the last part.
        prompt, generated, cached: tokens of the prompt, of the answer so far, and of the prompt
            that were found in the cache.
        tokens: those of the part, where logprobs were asked for.
    """

    text: str
    finish_reason: str = ""
    prompt: int = 0
    generated: int = 0
    cached: int = 0
    tokens: tuple[Token, ...] = ()


Parts = AsyncGenerator[Part, None]


async def parts(triton: Triton, model: Model, inputs: Inputs, parameters: Parameters) -> Parts:
    """Of one answer. By the ensemble, if that can be: it takes no ids, and gives no logprobs.

    Args:
        inputs: one of MESSAGES and TEXT BYTES [1, 1], INPUT_IDS INT32 [1, n].
    """
    is_plain = "INPUT_IDS" not in inputs and "logprobs" not in parameters
    source = _by_ensemble if is_plain else _by_steps
    is_whole = False
    async with aclosing(source(triton, model, inputs, parameters)) as found:
        async for part in found:
            is_whole = bool(part.finish_reason)
            yield part
    if not is_whole:
        raise ApiError(500, "internal_error", "the answer ended before its end; ask again")


async def _by_ensemble(
    triton: Triton, model: Model, inputs: Inputs, parameters: Parameters
) -> Parts:
    stream = triton.stream(model.name, inputs, parameters, model.steps[-1])
    async with aclosing(stream) as found:
        async for result in found:
            if result.get_response().outputs:
                yield _part(result, _text(result.as_numpy("ANSWER")))


async def _by_steps(triton: Triton, model: Model, inputs: Inputs, parameters: Parameters) -> Parts:
    prompt, decoder, text = model.steps
    if "INPUT_IDS" not in inputs:
        inputs = {"INPUT_IDS": await triton.infer(prompt, inputs, "INPUT_IDS")}
    async with aclosing(triton.stream(decoder, inputs, parameters, text)) as found:
        async for result in found:
            if result.get_response().outputs:
                names = "OUTPUT_IDS", "CONTEXT_IDS", "FINISH_REASON", "TRIM"
                taken = {name: result.as_numpy(name) for name in names}
                said = _text(await triton.infer(text, taken, "ANSWER"))
                named = "logprobs" in parameters
                yield _part(
                    result, said, await token_texts.tokens(triton, text, result) if named else ()
                )


def _part(result: Any, text: str, tokens: tuple[Token, ...] = ()) -> Part:
    prompt, generated, cached = result.as_numpy("USAGE").ravel().tolist()
    reason = _text(result.as_numpy("FINISH_REASON"))
    return Part(text, reason, prompt, generated, cached, tokens)


def _text(array: Array) -> str:
    return str(array.item().decode())


def joined(found: Sequence[Part]) -> Part:
    """All parts of an answer as one."""
    last = found[-1]
    text = "".join(part.text for part in found)
    tokens = tuple(token for part in found for token in part.tokens)
    return replace(last, text=text, tokens=tokens)


async def merged(streams: Sequence[Parts]) -> AsyncGenerator[tuple[int, Part], None]:
    """Parts of all streams as they come, each with its stream's index. The first error ends all,
    and so does whoever closes this."""
    found: asyncio.Queue[tuple[int, Part | BaseException | None]] = asyncio.Queue(len(streams))

    async def read(index: int, stream: Parts) -> None:
        try:
            async with aclosing(stream):
                async for part in stream:
                    await found.put((index, part))
            await found.put((index, None))
        except Exception as error:
            await found.put((index, error))

    tasks = [asyncio.create_task(read(*each)) for each in enumerate(streams)]
    try:
        async for each in _until_all_end(found, len(streams)):
            yield each
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until_all_end(
    found: asyncio.Queue[tuple[int, Part | BaseException | None]], streams: int
) -> AsyncIterator[tuple[int, Part]]:
    while streams:
        index, part = await found.get()
        if isinstance(part, BaseException):
            raise part
        if part is None:
            streams -= 1
        else:
            yield index, part


def pieces(part: Part) -> Iterator[Part]:
    """As a stream shows it: what is said, and then why that is the end."""
    if part.text or part.tokens:
        yield Part(part.text, tokens=part.tokens)
    if part.finish_reason:
        yield Part("", part.finish_reason)
