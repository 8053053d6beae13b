"""Which cores each rank gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.front.place.cores import share, threads

SETS = st.sets(st.integers(0, 63), min_size=1, max_size=16).map(lambda cpus: tuple(sorted(cpus)))


@given(st.lists(SETS, min_size=1, max_size=3), st.lists(st.integers(0, 2), min_size=1))
def test_everyone_gets_some_of_its_own(sets: list[tuple[int, ...]], of: list[int]) -> None:
    inherited = [sets[index % len(sets)] for index in of]
    shares = share(inherited)
    assert len(shares) == len(inherited)
    for mine, cpus in zip(shares, inherited, strict=True):
        assert mine
        assert set(mine) <= set(cpus)


@given(SETS, st.integers(1, 20))
def test_one_set_is_divided_evenly_and_used_up(cpus: tuple[int, ...], ranks: int) -> None:
    shares = share([cpus] * ranks)
    uses = [core for mine in shares for core in mine]
    sizes = {len(mine) for mine in shares}
    assert max(sizes) - min(sizes) <= 1
    if ranks <= len(cpus):
        assert uses == list(cpus)  # neighbours stay together, nobody shares
    else:
        counts = [uses.count(core) for core in cpus]
        assert max(counts) - min(counts) <= 1


def test_examples() -> None:
    assert share([(0, 1), (5,), (0, 1)]) == [(0,), (5,), (1,)]
    assert share([]) == []


@pytest.mark.parametrize(
    ("cores", "ranks", "limit", "expected"),
    [(8, 2, None, 8), (8, 2, 4.0, 2), (8, 2, 64.0, 8), (8, 4, 2.0, 1), (8, 2, 3.9, 1)],
)
def test_the_quota_holds(cores: int, ranks: int, limit: float | None, expected: int) -> None:
    assert threads(tuple(range(cores)), ranks, limit) == expected
