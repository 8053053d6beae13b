"""Messages and the arena between the front and its ranks."""

import os
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.model.errors import InvalidInput
from python_mp.wire.arena import Arena
from python_mp.wire.message import MAX_MESSAGE, Kind, Message, Placed
from python_mp.wire.sockets import Connection

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
UINT64 = st.integers(0, (1 << 64) - 1)
PLACES = st.builds(
    Placed,
    st.sampled_from(DTYPES).map(np.dtype),
    st.lists(st.integers(0, 1 << 40), max_size=5).map(tuple),
    UINT64,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MESSAGES = st.builds(
    Message,
    st.sampled_from(Kind),
    st.integers(0, (1 << 16) - 1),
    UINT64,
    UINT64,
    UINT64,
    st.dictionaries(TEXT, PLACES, max_size=4),
    TEXT,
    UINT64,
)
# FORWARD of batch 258 in slot 3, one tensor X int32 [2, 3] at 64 of the slot, text "ok".
MESSAGE = Message(Kind.FORWARD, 3, 258, 5, 6, {"X": Placed(np.dtype("int32"), (2, 3), 64)}, "ok", 7)
BYTES = (
    b"\x01" b"\x00" b"\x03\x00" b"\x01\x00\x00\x00"  # kind, nothing, slot, tensors
    b"\x02\x01\x00\x00\x00\x00\x00\x00"  # batch
    b"\x05\x00\x00\x00\x00\x00\x00\x00"  # compute ns
    b"\x06\x00\x00\x00\x00\x00\x00\x00"  # waited ns
    b"\x07\x00\x00\x00\x00\x00\x00\x00"  # padded
    b"\x04" b"\x02" b"\x01\x00"  # int32, two dims, a name of one byte
    b"\x40\x00\x00\x00\x00\x00\x00\x00"  # offset
    b"\x02\x00\x00\x00\x00\x00\x00\x00" b"\x03\x00\x00\x00\x00\x00\x00\x00"  # dims
    b"X" b"ok"
)  # fmt: skip


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert Message.decode(message.encode()) == message


def test_the_bytes_are_as_drawn() -> None:
    assert MESSAGE.encode() == BYTES
    assert Message.decode(BYTES) == MESSAGE


def test_what_is_too_long_for_a_datagram_is_refused_and_not_cut() -> None:
    longest = Message(Kind.FAILED, text="x" * (MAX_MESSAGE - len(Message(Kind.FAILED).encode())))
    assert Message.decode(longest.encode()) == longest
    with pytest.raises(OSError, match="Message too long"):
        longest._replace(text=longest.text + "x").encode()


def test_end_of_file_follows_what_was_sent() -> None:
    left, right = Connection.pair()
    assert not os.get_inheritable(left.fileno())
    for _ in range(2):
        left.send(MESSAGE)
    left.close()
    assert [right.receive() for _ in range(2)] == [MESSAGE] * 2
    assert right.receive() is None
    with pytest.raises(OSError, match="Broken pipe"):
        right.send(MESSAGE)
    right.close()
    left, right = Connection.pair()
    right.send(MESSAGE)
    left.close()  # with something unread: the kernel resets the connection
    assert right.receive() is None
    right.close()


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(slots=2, half=4096)
    yield arena
    arena.close()


@pytest.mark.parametrize("slot", [0, 1])
def test_parts_of_several_dtypes_are_read_as_written(arena: Arena, slot: int) -> None:
    random = np.random.default_rng(slot)
    parts = {
        dtype: [(random.random((rows, 3)) * 100).astype(dtype) for rows in (1, 4, 2)]
        for dtype in DTYPES
    }
    placed = arena.write_inputs(slot, parts)
    read = arena.read_inputs(slot, placed)
    for dtype in DTYPES:
        assert placed[dtype].shape == (7, 3)
        assert read[dtype].dtype == dtype
        assert np.array_equal(read[dtype], np.concatenate(parts[dtype]))
        assert read[dtype].ctypes.data % 64 == 0


def test_what_does_not_fit_is_refused(arena: Arena) -> None:
    one = np.zeros(1, np.uint8)
    with pytest.raises(InvalidInput, match="max_batch_bytes 4096"):
        arena.write_inputs(0, {"A": [np.zeros(4097, np.uint8)]})
    with pytest.raises(InvalidInput, match="max_batch_bytes 4096"):
        arena.write_outputs(0, {"A": np.zeros(4033, np.uint8), "B": one})  # B starts at 4096
    arena.write_outputs(0, {"A": np.zeros(4032, np.uint8), "B": one})


def test_a_message_cut_short_is_no_whole_one() -> None:
    for size in range(len(BYTES)):
        with suppress(ValueError):
            assert Message.decode(BYTES[:size]) != MESSAGE


def test_halves_and_slots_do_not_touch_each_other(arena: Arena) -> None:
    ways = [(arena.write_inputs, arena.read_inputs), (arena.write_outputs, arena.read_outputs)]
    places = [
        (slot, read, write(slot, {"X": [full] if read == arena.read_inputs else full}))
        for slot in (0, 1)
        for write, read in ways
        for full in [np.full(4096, 2 * slot + (read == arena.read_inputs), np.uint8)]
    ]
    read = [set(read(slot, place)["X"].tolist()) for slot, read, place in places]
    assert read == [{1}, {0}, {3}, {2}]
