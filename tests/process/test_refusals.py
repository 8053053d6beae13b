"""What a batch is refused for: only the guilty are, and the others are computed once, together."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from python_mp.model.errors import InvalidInput, RequestFailed
from python_mp.rank.engines.echo import EVERYONE, FAIL, RAISE
from tests.support.configs import echo_config, module_config
from tests.support.replicas import (
    LIMIT,
    Array,
    Served,
    ask,
    counted,
    pids,
    served,
    values,
)

pytestmark = pytest.mark.usefixtures("one_forkserver")

# Twice X, unless it is told otherwise, and `bad` says which rows hold a negative number.
MODULE = """
from torch import nn
from python_mp.model.errors import InvalidInput, RequestFailed


def check(batch):
    bad = batch["X"] < 0
    {check}


class Twice(nn.Module):
    def __init__(self, shard):
        super().__init__()
        self.shard = shard

    def forward(self, batch, hidden):
        x = batch["X"]
        bad = (x < 0).any(1)
        {forward}
        return {{"Y": self.shard.all_reduce(x.clone())}}


build = Twice
"""
REFUSES = "if bad.any(): raise {}('X holds a negative number')"
WAYS = {
    "named": {"check": "batch.refuse(bad, 'X holds a negative number')"},
    "unnamed": {"check": REFUSES.format("InvalidInput")},
    "any error": {"forward": REFUSES.format("ValueError")},
    "an error of ours": {"forward": REFUSES.format("RequestFailed")},
    "too few rows": {"forward": "x = x[~bad]"},
    "no rows": {"forward": "x = x.sum() if bad.any() else x"},
}
BAD, GOOD = np.full((1, 4), -1, np.float32), np.ones((1, 4), np.float32)


def module(check: str = "pass", forward: str = "pass") -> str:
    return MODULE.format(check=check, forward=forward)


def rows_of(*numbers: float) -> list[dict[str, Array]]:
    return [{"X": np.full((1, 4), n, np.float32)} for n in numbers]


@pytest.fixture(params=WAYS)
def doubling(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Served, str]]:
    text = module(**WAYS[request.param])
    with served(module_config(tmp_path, text, tensor_parallel_size=2), tmp_path) as replica:
        yield replica, request.param


def test_only_the_guilty_are_refused(doubling: tuple[Served, str]) -> None:
    replica, way = doubling
    choice = random.Random(7)
    wrong = InvalidInput if "named" in way else RequestFailed
    asked, bad = 0, 0
    for share in (0.0, 0.02, 0.3, 1.0):
        sizes = choice.choices(range(1, 5), k=64)
        arrays = [np.random.default_rng(n).random((b, 4), np.float32) for n, b in enumerate(sizes)]
        guilty = [choice.random() < share for _ in arrays]
        for array, is_bad in zip(arrays, guilty, strict=True):
            if is_bad:
                array[choice.randrange(len(array)), choice.randrange(4)] = -1
        futures = replica.ask_all([{"X": array} for array in arrays])
        for array, is_bad, future in zip(arrays, guilty, futures, strict=True):
            if is_bad:
                with pytest.raises(wrong, match=r"X holds a negative|has not \d+ rows|rows of"):
                    future.result(LIMIT)
            else:
                assert np.array_equal(future.result(LIMIT)["Y"], 2 * array)
        asked, bad = asked + len(arrays), bad + sum(guilty)
    reason = "invalid" if wrong is InvalidInput else "poison"
    assert counted(replica, f"refused_total{{reason={reason}}}", "restarts_total") == [bad, 0]
    dispatched, batches = counted(replica, "requests_total", "batches_total")
    if way == "named":  # Each batch went once more, without the guilty.
        assert dispatched <= 2 * asked
        assert batches <= 12


@pytest.mark.parametrize("fault", [(FAIL, 0, 1), (FAIL, 1, 1), (RAISE, EVERYONE, 1)])
def test_ranks_that_disagree_are_ended(tmp_path: Path, fault: tuple[int, int, int]) -> None:
    with served(echo_config(tmp_path, tensor_parallel_size=2), tmp_path) as replica:
        before = pids(replica)
        with pytest.raises(RequestFailed, match=r"as asked \(1\)"):
            ask(replica, 1, fault=fault).result(LIMIT)
        assert values([ask(replica, 2)]) == [[2]]
        assert not set(before) & set(pids(replica))


ONE_RANK = "if self.shard.rank == 1 and bad.any(): raise ValueError('negative')"
ONE_STAGE = """if hidden is None:
            if bad.any(): raise ValueError('negative')
            return x
        x = hidden + x"""


# A collective has begun, and that nobody is hung for `hang_seconds` does not keep it alive; or the
# next stage waits for it.
@pytest.mark.parametrize(
    ("forward", "more", "said"),
    [
        (ONE_RANK, {"tensor_parallel_size": 2, "hang_seconds": 0}, "refused what others wait for"),
        (ONE_STAGE, {"pipeline_parallel_size": 2}, "negative"),
    ],
    ids=["rank", "stage"],
)
def test_one_that_fails_alone_ends_its_group(
    tmp_path: Path, forward: str, more: dict[str, int], said: str
) -> None:
    text = module(forward=forward)
    with served(module_config(tmp_path, text, **more), tmp_path) as replica:
        with pytest.raises(RequestFailed, match=said):
            replica.ask(X=BAD).result(LIMIT)
        assert np.array_equal(replica.ask(X=GOOD).result(LIMIT)["Y"], 2 * GOOD)
        assert counted(replica, "restarts_total")[0] >= 1


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("SystemExit('bye')", "SystemExit: bye"),
        ("RuntimeError('\\ud800')", r"RuntimeError: \\ud800"),
        ("type('Mute', (InvalidInput,), dict(__str__=None))('')", "Mute"),
    ],
)
def test_whatever_a_module_raises_the_client_hears_of_it(
    tmp_path: Path, raised: str, said: str
) -> None:
    """And nobody else does."""
    text = module(forward=f"if bad.any(): raise {raised}")
    with served(module_config(tmp_path, text), tmp_path) as replica:
        good, better, bad, best = replica.ask_all(rows_of(1, 2, -1, 3))
        with pytest.raises((RequestFailed, InvalidInput), match=f"^{said}$"):
            bad.result(LIMIT)
        for n, future in enumerate((good, better, best), 1):
            assert np.array_equal(future.result(LIMIT)["Y"], n * GOOD)


@pytest.mark.parametrize("named", ["[-1]", "[4]", "[1 << 80] * 5000"])
def test_only_sequences_of_the_batch_can_be_blamed(tmp_path: Path, named: str) -> None:
    check = f"if bad.any(): raise InvalidInput(sequences={named}, text='no')"
    with served(module_config(tmp_path, module(check)), tmp_path) as replica:
        futures = replica.ask_all(rows_of(0, 1, -1, 2))
        assert [n for n, each in enumerate(futures) if each.exception(LIMIT)] == [2]
        assert counted(replica, "restarts_total") == [0]


def test_outputs_of_a_free_size_that_are_too_large_are_asked_for_in_halves(tmp_path: Path) -> None:
    """Nobody knows their size before they are computed; then the slot must not overflow."""
    text = module(forward="x = x[:, :1].repeat(1, int(x[0, 1]))")
    config = module_config(tmp_path, text, (4,), (-1,), max_batch_bytes=1 << 16)
    with served(config, tmp_path) as replica:
        rows = [np.array([[n, 2000, 0, 0]], np.float32) for n in range(30)]
        futures = replica.ask_all([{"X": row} for row in rows])
        for n, future in enumerate(futures):
            assert np.array_equal(future.result(LIMIT)["Y"], np.full((1, 2000), n, np.float32))
        with pytest.raises(InvalidInput, match="take more than max_batch_bytes"):
            replica.ask(X=np.array([[1, 1 << 20, 0, 0]], np.float32)).result(LIMIT)
        assert counted(replica, "restarts_total") == [0]
        assert counted(replica, "requests_total")[0] <= 4 * len(rows)  # Halves, not one by one.
