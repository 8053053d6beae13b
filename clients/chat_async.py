"""Several answers at a time with asyncio: `python -m clients.chat_async "a question" "another"`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from clients.connection import default_url
from clients.proxy import direct


async def answer(client: InferenceServerClient, question: str, **parameters: Any) -> str:
    """The whole answer to one question; its parts come as they are generated."""
    said = json.dumps([{"role": "user", "content": question}])
    tensor = InferInput("MESSAGES", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[said.encode()]], np.object_))

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "chat", "inputs": [tensor], "parameters": parameters}

    parts = []
    async for result, error in client.stream_infer(requests()):
        if error:
            raise error
        parts.append(result.as_numpy("ANSWER").item().decode())
    return "".join(parts)


async def main(questions: list[str], url: str) -> None:
    async with InferenceServerClient(url, **direct(url)) as client:
        answers = await asyncio.gather(*(answer(client, each, max_tokens=64) for each in questions))
    for question, said in zip(questions, answers, strict=True):
        print(f"> {question}\n{said}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["What is a kitten?"], default_url("grpc")))
