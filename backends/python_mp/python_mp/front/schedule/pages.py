"""Where the keys and values of one stream lie: its blocks, and how far they are written."""

from __future__ import annotations

import numpy as np

from ...model.request import Array
from .block_pool import BLOCK, BlockPool, blocks_for, key_of


class Pages:
    """
    Args:
        ids: of the stream; those that are known so far stand at its beginning.

    Attributes:
        table: int32 [blocks], the blocks in order; -1 where there is none yet.
        cached: of the tokens, from the first, so many are in the cache, or will be when the steps
            that were cut so far are done.
    """

    def __init__(self, ids: Array) -> None:
        self._ids = ids
        self._blocks: list[int] = []
        self._keys: list[bytes] = []
        self.table = np.full(blocks_for(len(ids)), -1, np.int32)
        self.cached = 0

    def open(self, pool: BlockPool, length: int, spare: int) -> bool:
        """Takes blocks for so many tokens, those of a known prefix among them. The last token is
        computed in any case: its row is what the next one is made of.

        Args:
            spare: free blocks that must be left.

        Returns:
            Whether there were enough.
        """
        shared = pool.find(self._key(block) for block in range((length - 1) // BLOCK))
        new = blocks_for(length) - len(shared)
        if pool.needed(shared, new) + spare > pool.free:
            return False
        taken = pool.take(shared, new)
        assert taken is not None
        self._extend(taken)
        self.cached = len(shared) * BLOCK
        return True

    def grow(self, pool: BlockPool, length: int) -> bool:
        """Whether there are blocks for so many tokens now."""
        if (new := blocks_for(length) - len(self._blocks)) <= 0:
            return True
        taken = pool.take((), new)
        if taken is None:
            return False
        self._extend(taken)
        return True

    def write(self, pool: BlockPool, tokens: int) -> None:
        """The step that is being cut computes so many more. Full blocks may be shared from now on:
        steps run in the order in which they are cut, and each writes before it reads."""
        full = self.cached // BLOCK
        self.cached += tokens
        for block in range(full, self.cached // BLOCK):
            pool.share(self._blocks[block], self._key(block))

    def close(self, pool: BlockPool) -> None:
        pool.release(self._blocks)
        self.forget()

    def forget(self) -> None:
        """The cache is gone, with all blocks."""
        self._blocks, self.cached = [], 0
        self.table.fill(-1)

    def _extend(self, blocks: list[int]) -> None:
        count = len(self._blocks)
        self.table[count : count + len(blocks)] = blocks
        self._blocks += blocks

    def _key(self, block: int) -> bytes:
        while len(self._keys) <= block:
            start = len(self._keys) * BLOCK
            before = self._keys[-1] if self._keys else b""
            self._keys.append(key_of(before, self._ids[start : start + BLOCK]))
        return self._keys[block]
