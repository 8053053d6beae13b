"""Models of one answer a row: rows in requests as big as they take, answers in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np

from gateway.registry import Model
from gateway.upstream import Array, Triton

IN_FLIGHT = 4
"""Of one client's request at a time, so that a long list leaves room for others."""


async def infer(
    triton: Triton, model: Model, name: str, inputs: Mapping[str, Array], output: str
) -> Array:
    """
    Args:
        model: whose `rows` bound a request.
        name: the model that is asked, it or one of its steps.
        inputs: [rows, 1] each.

    Returns:
        [rows, ...].
    """
    rows = len(next(iter(inputs.values())))
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def some(first: int) -> Array:
        part = {name: array[first : first + model.rows] for name, array in inputs.items()}
        async with slots:
            return await triton.infer(name, part, output)

    made = [asyncio.create_task(some(first)) for first in range(0, rows, model.rows)]
    try:
        return np.concatenate(await asyncio.gather(*made))
    finally:
        for task in made:
            task.cancel()


async def tokens(triton: Triton, model: Model, inputs: Mapping[str, Array]) -> int:
    """Of all rows, as the first step counts them."""
    lengths = await infer(triton, model, model.steps[0], inputs, "LENGTHS")
    return int(lengths.sum())
