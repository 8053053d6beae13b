"""The front's server of streams, octet by octet: what passes is as by a plain connection, and an
end of its own comes only where a frame of HTTP/2 ends."""

from __future__ import annotations

import http.client
import random
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.endpoints import Endpoints
from tests.deploy.conftest import NewFront
from tests.deploy.front import SECONDS, Front, at, behind
from tests.deploy.front_peers import ANY_AMOUNT, PREFACE, Upstream
from tests.deploy.test_front_crashes import prefixed
from tests.deploy.test_front_streams import BAD, HEAD, PART, STREAM, message, opened
from tests.support.bad_json import GENERATED
from tests.support.calls import in_background

DATA, HEADERS, SETTINGS, CONTINUATION = 0, 1, 4, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, content: bytes, stream: int = 1) -> bytes:
    """Of HTTP/2."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


BEGINS = frame(HEADERS, END_HEADERS, b"\x88\x5f\x10application/grpc")
BEGINS_IN_TWO = frame(HEADERS, 0, b"\x88") + frame(CONTINUATION, END_HEADERS, b"\x5f\x01a")
ANSWERED = frame(DATA, 0, prefixed(b"T" * 60))
DOWN = frame(SETTINGS, 1, b"", 0) + BEGINS_IN_TWO + frame(DATA, 0, prefixed(b"abc"))
BROKEN_OFF = 1.0  # seconds, of a frame that has no end by then
HANDSHAKE = PREFACE + frame(SETTINGS, 0, b"", 0) + frame(HEADERS, END_HEADERS, b"\x83")
WRONG = frame(DATA, 0, prefixed(BAD["a shape"][0]))
BROKEN = http.client.IncompleteRead, ConnectionResetError
Line = tuple[socket.socket, socket.socket]
"""The client's end and Triton's."""


@st.composite
def cut(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    """Its pieces."""
    places = {0, len(raw), *draw(st.lists(st.integers(0, len(raw)), max_size=8))}
    return [raw[start:end] for start, end in pairwise(sorted(places))]


@st.composite
def spoken(draw: st.DrawFn) -> list[bytes]:
    """A client's pieces: good messages, in frames that need not end where they do."""
    said = b"".join(prefixed(message(*range(n))) for n in draw(st.lists(st.integers(1, 9))))
    framed = b"".join(frame(DATA, 0, part) for part in draw(cut(said)))
    return draw(cut(HANDSHAKE + framed))


@st.composite
def heard(draw: st.DrawFn) -> list[bytes]:
    """Triton's."""
    begins = draw(st.sampled_from([BEGINS, BEGINS_IN_TWO]))
    others = st.sampled_from([frame(SETTINGS, 1, b"", 0), frame(6, 0, b"pingpong", 0)])
    first = b"".join(draw(st.lists(others, min_size=1, max_size=2)))
    rest = b"".join(draw(st.lists(others | st.just(ANSWERED), max_size=4)))
    return draw(cut(first + begins + rest))


def whole_frames(raw: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, flags, content of each; what is none fails."""
    found = []
    while raw:
        length, kind, flags = int.from_bytes(raw[:3], "big"), raw[3], raw[4]
        assert len(raw) >= 9 + length
        found.append((kind, flags, raw[9 : 9 + length]))
        raw = raw[9 + length :]
    return found


def taken(end: socket.socket, most: int = 1 << 30) -> bytes:
    """So many octets, or all to the end."""
    found = b""
    while len(found) < most and (more := end.recv(min(most - len(found), 1 << 16))):
        found += more
    return found


def told(client: socket.socket) -> bytes:
    """What comes until a stream is over, and why is said."""
    found = b""
    while b"grpc-message" not in found and (more := client.recv(1 << 16)):
        found += more
    return found


@contextmanager
def line(front: Front, triton: socket.socket) -> Iterator[Line]:
    """A stream through the front."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(str(front.folder / "run" / "streams.sock"))
        server, _ = triton.accept()
        with server:
            server.settimeout(SECONDS)
            yield client, server


@contextmanager
def beside(new_front: NewFront, folder: Path) -> Iterator[tuple[Front, socket.socket]]:
    """A front, and what listens in Triton's place for streams alone."""
    with socket.create_server(("127.0.0.1", 0)) as triton:
        triton.settimeout(SECONDS)
        ports = replace(Endpoints.free(), grpc=triton.getsockname()[1])
        with new_front(folder, **behind(ports)) as front:
            yield front, triton


def test_streams_pass_however_they_are_cut(new_front: NewFront, tmp_path: Path) -> None:
    """Each piece at once, in both directions."""

    @settings(GENERATED, max_examples=60)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        pieces = data.draw(spoken()), data.draw(heard())
        order = [side for side in (0, 1) for _ in pieces[side]]
        with line(front, triton) as ends:
            for side in data.draw(st.permutations(order)):
                ends[side].sendall(piece := pieces[side].pop(0))
                assert taken(ends[1 - side], len(piece)) == piece

    with beside(new_front, tmp_path / "front") as (front, triton):
        run()


def test_streams_end_where_a_frame_does(new_front: NewFront, tmp_path: Path) -> None:
    """A message that is none comes when some of Triton's has passed; then comes some more of that,
    and then the rest."""
    places = random.Random(1)
    pairs = [(at, places.randint(at, len(DOWN))) for at in [*range(len(DOWN))] * 6]
    with beside(new_front, tmp_path / "front") as (front, triton):
        for batch in (pairs[start : start + 100] for start in range(0, len(pairs), 100)):
            with ExitStack() as stack:
                end_there([(*each, stack.enter_context(line(front, triton))) for each in batch])


def end_there(lines: list[tuple[int, int, Line]]) -> None:
    for place, _, (client, server) in lines:
        client.sendall(HANDSHAKE)
        server.sendall(DOWN[:place])
        assert taken(server, len(HANDSHAKE)) == HANDSHAKE
        assert taken(client, place) == DOWN[:place]
    began = time.monotonic()
    for _, _, (client, _) in lines:
        client.sendall(WRONG[:-1])
        client.sendall(WRONG[-1:])
    time.sleep(0.1)  # Then the end of each is due.
    for place, more, (_, server) in lines:
        server.sendall(DOWN[place:more])
    for _, more, (_, server) in lines:
        server.sendall(DOWN[more:])
    for place, _, (client, server) in lines:
        got = told(client)
        server.shutdown(socket.SHUT_WR)
        got += taken(client)
        had = taken(server)
        assert WRONG.startswith(had)
        assert had != WRONG
        if got.count(b"grpc-message") or time.monotonic() - began < BROKEN_OFF:
            check_end(DOWN[:place] + got, at_least=place)


def check_end(got: bytes, at_least: int) -> None:
    """The frames that had begun, and one that says why it is over."""
    *before, (kind, flags, content) = whole_frames(got)
    begun = sum(9 + len(each) for _, _, each in before)
    assert DOWN[:begun] == got[:begun]
    assert begun >= at_least
    assert (kind, flags) == (HEADERS, END_STREAM | END_HEADERS)
    assert b"grpc-status\x013" in content
    heads = [flags for kind, flags, _ in before if kind in (HEADERS, CONTINUATION)]
    assert not heads or heads[-1] & END_HEADERS
    assert content.startswith(b"\x88") != bool(heads)


def test_clients_are_told_where_a_frame_ended(new_front: NewFront, tmp_path: Path) -> None:
    one = Upstream("127.0.0.1", 0, BEGINS + ANSWERED[:5], part=ANSWERED[5:] + ANSWERED[:5])
    with one, new_front(tmp_path / "front", **at(one.port), STREAM_LIFETIME="1s") as front:
        code, sentence, _ = front.stream([message(1.0)])
    assert (code, "longer than" in sentence) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)


def test_a_frame_without_an_end_is_broken_off(new_front: NewFront, tmp_path: Path) -> None:
    """A client that has one answer, and half of the next, sends a bad message."""
    came = threading.Event()

    def messages() -> Iterator[bytes]:
        yield message(1.0)
        assert came.wait(SECONDS)
        yield BAD["a shape"][0]

    with beside(new_front, tmp_path / "front") as (front, triton):
        ended = in_background(lambda: front.stream(messages(), came=came.set))
        server, _ = triton.accept()
        with server:
            head = frame(DATA, 0, prefixed(bytes(16_000)))[:14]
            server.sendall(ANY_AMOUNT + BEGINS + ANSWERED + head)
            with suppress(OSError):
                while not ended.done():
                    server.sendall(b"\0")
                    time.sleep(0.02)
            assert ended.result(SECONDS)[::2] == (grpc.StatusCode.INTERNAL, 1)
        assert "a stream was refused, or took longer" in front.errors


def most_held(front: Front) -> int:
    """Bytes of memory so far."""
    said = [Path(f"/proc/{pid}/status").read_text() for pid in front.workers]
    return sum(1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", each)[0]) for each in said)


@pytest.mark.campaign
def test_an_answer_has_some_parts_at_most(new_front: NewFront, tmp_path: Path) -> None:
    """Each costs memory until it ends."""
    one = Upstream("127.0.0.1", 0, HEAD, part=PART * 2000, pause=0.0)
    with one, new_front(tmp_path / "front", **at(one.port)) as front:
        before = most_held(front)
        with opened(front.http, STREAM, b'{"IN": 1}') as answer, suppress(*BROKEN):
            while answer.read(1 << 20):
                pass
        assert 30 << 20 < most_held(front) - before < 256 << 20
        assert "more than 200000 parts" in front.errors


@pytest.mark.campaign
def test_an_answer_in_too_many_pieces_is_broken_off(new_front: NewFront, tmp_path: Path) -> None:
    """Nobody knows where its frames end."""
    with beside(new_front, tmp_path / "front") as (front, triton), line(front, triton) as ends:
        client, server = ends
        for _ in range(50_001):
            server.sendall(ANSWERED[:1])
            assert client.recv(1) == ANSWERED[:1]
        client.sendall(HANDSHAKE + WRONG)
        with suppress(OSError):
            while client not in select.select([client], [], [], 0.02)[0] or client.recv(1 << 16):
                server.sendall(b"\0")
        assert "a stream was refused, or took longer" in front.errors


@pytest.mark.campaign
def test_a_stream_comes_in_some_pieces_at_most(new_front: NewFront, tmp_path: Path) -> None:
    """Octet by octet."""
    with beside(new_front, tmp_path / "front") as (front, triton), line(front, triton) as ends:
        client, server = ends
        client.sendall(HANDSHAKE + frame(DATA, 0, b"\0" + struct.pack(">I", 1_000_000)))
        before, said, sent = most_held(front), b"", 0
        while b"begin another one" not in said:
            client.sendall(frame(DATA, 0, b"x"))
            sent += 1
            ready = select.select([client, server], [], [], SECONDS)[0]
            got = {end: end.recv(1 << 16) for end in ready}
            said += got.get(client, b"")
        assert 150_000 < sent <= 200_001
        assert most_held(front) - before < 256 << 20
