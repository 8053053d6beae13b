"""What a kernel would read beyond its end, or take for something else, never reaches it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from python_mp.sharding import by_row, native, row_attention
from python_mp.sharding.attention import Masking
from python_mp.sharding.kv_pages import new_cache
from python_mp.sharding.native import address
from python_mp.sharding.paged import attend_stored, store
from python_mp.sharding.products import linear

zeros = torch.zeros
ENDS = torch.tensor([0, 4], dtype=torch.int32)
FOLDER = Path(native.__file__).parent


def packed(q: Any, k: Any, ends: Any = ENDS, sinks: Any = None) -> Any:
    return row_attention.attend(q, k, k, ends, Masking(), sinks)


def stored(head: int = 8, window: int = 0, sinks: Any = None, table: Any = None) -> Any:
    keys, values = new_cache(2, 1, 8, torch.float32, torch.device("cpu"))
    table = torch.tensor([[0, 1]]) if table is None else table
    context, ends, masking = torch.tensor([20]), torch.tensor([0, 1]), Masking(True, window)
    return attend_stored(zeros(1, 2, head), keys, values, table, context, ends, masking, sinks)


def storing(k: Any, v: Any, places: Any) -> Any:
    return store(k, v, *new_cache(2, 1, 8, torch.float32, torch.device("cpu")), places)


PLACES, ROWS = torch.zeros(3, dtype=torch.int64), zeros(3, 1, 8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: linear(zeros(2, 8), zeros(5, 8), zeros(4)),
        lambda: linear(zeros(2, 8), zeros(5, 7), None),
        lambda: by_row.normalised(zeros(2, 8), zeros(7), 1e-5),
        lambda: by_row.normalised(zeros(2, 8), zeros(16)[::2], 1e-5),
        lambda: by_row.rotated(zeros(3, 2, 8), zeros(2, 8), zeros(3, 8)),
        lambda: by_row.rotated(zeros(3, 2, 16)[..., ::2], zeros(3, 8), zeros(3, 8)),
        lambda: packed(zeros(4, 2, 8), zeros(3, 2, 8)),
        lambda: packed(zeros(4, 2, 8), zeros(4, 2, 8), sinks=zeros(1)),
        lambda: packed(zeros(4, 2, 8), zeros(4, 2, 8), ENDS[:0]),
        lambda: stored(head=16),
        lambda: stored(sinks=zeros(1)),
        lambda: stored(window=-1, table=torch.tensor([[-1, 1]])),
        lambda: storing(ROWS, ROWS[:2], PLACES),
        lambda: storing(ROWS, ROWS, PLACES[:2]),
        lambda: storing(ROWS, ROWS, PLACES.int()),
        lambda: storing(ROWS[..., :4], ROWS[..., :4], PLACES),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"a kernel takes|for pages|block_table|cannot take|keys"):
        call()


def test_a_bias_that_does_not_lie_end_to_end_is_added_right() -> None:
    bias = torch.arange(10.0)[::2]
    assert torch.equal(linear(zeros(1, 8), zeros(5, 8), bias), bias[None])


def test_an_address_is_of_what_is_asked() -> None:
    x = torch.arange(6)
    assert address(x, torch.int64, 6) == x.data_ptr()
    assert address(None, torch.int64, 6) == 0
    for wrong in (x[:5], x[::2].repeat(2)[::1][:0], x.int(), zeros(12, dtype=torch.int64)[::2]):
        with pytest.raises(ValueError, match="a kernel takes 6 numbers of torch.int64"):
            address(wrong, torch.int64, 6)


def test_kernels_are_given_addresses_by_nobody_else() -> None:
    """But `replay`, into memory of its own; the others look whose memory it is."""
    found = {
        file.name
        for file in FOLDER.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "data_ptr"
    }
    assert found == {"native.py", "replay.py", "capture.py", "combining.py", "slices.py"}
