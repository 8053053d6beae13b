"""The blocks of the ranks' KV cache: who uses which, and where a prefix lies that others may share.

The front is the only one who hands blocks out; ranks write and read where they are told to. A
block that nobody uses any more keeps what was written there until it is handed out again, so a
prompt that begins as an earlier one did finds its beginning computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from ...model.request import Array

BLOCK = 16
"""Tokens of one block."""


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK)


def key_of(before: bytes, ids: Array) -> bytes:
    """Of a full block: a hash of its ids and, through the key of the block before, of all ids
    that stand before them, on which keys and values depend as well."""
    return blake2b(ids.tobytes(), digest_size=16, key=before).digest()


class BlockPool:
    """
    Attributes:
        blocks: how many there are.
        cached: those that nobody uses and that hold a part of a prefix.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._users = [0] * blocks
        # In the order in which they are handed out: first those that hold nothing to share.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._by_key: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self.cached = 0

    @property
    def free(self) -> int:
        """Blocks that nobody uses, whatever they hold."""
        return len(self._free)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest beginning of these that is there. They are not taken yet."""
        found: list[int] = []
        for key in keys:
            if (block := self._by_key.get(key)) is None:
                break
            found.append(block)
        return found

    def needed(self, shared: Sequence[int], new: int) -> int:
        """How many free blocks `take` would use up."""
        return new + sum(not self._users[block] for block in shared)

    def take(self, shared: Sequence[int], new: int) -> list[int] | None:
        """Those that were found, and as many new ones behind them; None if there are too few."""
        if self.needed(shared, new) > len(self._free):
            return None
        for block in shared:
            if not self._users[block]:
                del self._free[block]
                self.cached -= 1
            self._users[block] += 1
        return [*shared, *(self._hand_out() for _ in range(new))]

    def share(self, block: int, key: bytes) -> None:
        """What the block holds, or will when the steps that were cut so far are done, may be
        found from now on. Where another one holds the same, that one is."""
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """One user needs them no more. Of a prefix that nobody uses, the end is forgotten first."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                is_cached = block in self._keys
                self.cached += is_cached
                self._free[block] = None
                self._free.move_to_end(block, last=is_cached)

    def _hand_out(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._users[block] = 1
        if key := self._keys.pop(block, None):
            del self._by_key[key]
            self.cached -= 1
        return block
