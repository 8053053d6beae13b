"""Blocks of the KV cache, against a plain model of who has what."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from python_mp.front.schedule.block_pool import BLOCK, BlockPool
from python_mp.front.schedule.pages import Pages

BLOCKS = 12
# Few different ids, so that prefixes are often the same.
PROMPTS = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=5).map(
    lambda kinds: np.repeat(np.array(kinds, np.int32), BLOCK)
)


class Cache(RuleBasedStateMachine):
    """Streams open, write and close. `written` is what really lies in each block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.written: dict[int, tuple[int, ...]] = {}
        """Block -> all ids up to the end of it, of whoever wrote there last."""
        self.open: list[tuple[Pages, np.ndarray]] = []

    @rule(prompt=PROMPTS, cut=st.integers(0, BLOCK - 1), spare=st.integers(0, 3))
    def begin(self, prompt: np.ndarray, cut: int, spare: int) -> None:
        ids = prompt[: max(1, len(prompt) - cut)]
        room = np.concatenate([ids, np.zeros(BLOCK, np.int32)])
        pages, free = Pages(room), self.pool.free
        if not pages.open(self.pool, len(ids), spare):
            assert free - spare < -(-len(ids) // BLOCK)
            assert self.pool.free == free
            return
        assert self.pool.free >= spare
        assert pages.cached < len(ids), "the last token is computed"
        for block in range(pages.cached // BLOCK):
            shared = tuple(ids[: (block + 1) * BLOCK].tolist())
            assert self.written[int(pages.table[block])] == shared
        self.open.append((pages, ids))

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        unfinished = [(p, ids) for p, ids in self.open if p.cached < len(ids)]
        if not unfinished:
            return
        pages, ids = data.draw(st.sampled_from(unfinished))
        tokens = data.draw(st.integers(1, len(ids) - pages.cached))
        for block in range(pages.cached // BLOCK, -(-(pages.cached + tokens) // BLOCK)):
            end = min((block + 1) * BLOCK, pages.cached + tokens)
            self.written[int(pages.table[block])] = tuple(ids[:end].tolist())
        pages.write(self.pool, tokens)

    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        if self.open:
            pages, ids = data.draw(st.sampled_from(self.open))
            free, had = self.pool.free, len(held(pages))
            grown = pages.grow(self.pool, len(ids) + BLOCK)
            assert grown == (free >= -(-len(ids) // BLOCK) + 1 - had)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.open:
            pages, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
            pages.close(self.pool)
            assert held(pages) == []

    @invariant()
    def nothing_is_lost_or_overwritten(self) -> None:
        used = {block for pages, _ in self.open for block in held(pages)}
        assert self.pool.free == BLOCKS - len(used)
        assert self.pool.cached == sum(block in self.pool._keys for block in self.pool._free)
        for pages, ids in self.open:
            for at, block in enumerate(held(pages)[: pages.cached // BLOCK]):
                assert self.written[block] == tuple(ids[: (at + 1) * BLOCK].tolist())

    def teardown(self) -> None:
        for pages, _ in self.open:
            pages.close(self.pool)
        assert self.pool.free == BLOCKS


def held(pages: Pages) -> list[int]:
    return [block for block in pages.table.tolist() if block >= 0]


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_prefix_is_found_until_its_blocks_are_needed() -> None:
    """And of one, the end is forgotten first."""
    pool, ids = BlockPool(4), np.arange(3 * BLOCK + 1, dtype=np.int32)
    first = Pages(ids)
    assert first.open(pool, len(ids), 0)
    first.write(pool, len(ids))
    first.close(pool)
    assert (pool.free, pool.cached) == (4, 3)
    other = Pages(np.full(2 * BLOCK, 9, np.int32))
    assert other.open(pool, 2 * BLOCK, 0)
    assert pool.cached == 2
    again = Pages(ids)
    assert not again.open(pool, len(ids), 0)
    other.close(pool)
    assert again.open(pool, len(ids), 0)
    assert again.cached == 2 * BLOCK
