"""Embed texts with asyncio: `python -m clients.embed_async "a text" "another"`."""

import asyncio
import sys

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from clients.connection import default_url
from clients.proxy import direct


async def embed(client: InferenceServerClient, text: str) -> NDArray[np.float32]:
    """One text a request, float32 [384]; the server forms the batches."""
    tensor = InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], np.object_))
    result = await client.infer("embed", [tensor])
    vector: NDArray[np.float32] = result.as_numpy("EMBEDDING")[0]
    return vector


async def main(texts: list[str], url: str) -> None:
    async with InferenceServerClient(url, **direct(url)) as client:
        vectors = await asyncio.gather(*(embed(client, text) for text in texts))
    for text, vector in zip(texts, vectors, strict=True):
        print(f"{np.dot(vector, vectors[0]):6.3f}  {text}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["A cat sits.", "A kitten rests."], default_url("grpc")))
