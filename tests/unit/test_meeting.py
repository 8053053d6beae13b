"""Who meets whom over hosts, and that strangers do not."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from python_mp.rank.collectives.communicator import Place
from python_mp.rank.collectives.meeting import greet, meet
from python_mp.rank.collectives.over_hosts import peers

KEY = b"known to the group"


ALL = itertools.product(range(1, 7), range(1, 7), range(1, 37))


def test_places_on_hosts() -> None:
    """Each host has whole stages or a part of one; who wants a connection is wanted."""
    for size, stages, hosts in ALL:
        block, left = divmod(size * stages, hosts)
        if left or (block % size and size % block):
            with pytest.raises(ValueError, match="equally"):
                Place(0, size, 0, stages, hosts)
            continue
        world = itertools.product(range(stages), range(size))
        places = [Place(rank, size, stage, stages, hosts) for stage, rank in world]
        for host in range(hosts):
            of_host = places[host * block : (host + 1) * block]
            assert [place.inside.world_rank for place in of_host] == [*range(block)]
            assert all(place.inside.world_size == block for place in of_host)
            assert all(place.is_near(each.world_rank) for place in of_host for each in of_host)
        for place in places:
            assert all(place.world_rank in peers(places[each]) for each in peers(place))
            assert not any(place.is_near(each) for each in peers(place))


def both(*ends: Callable[[socket.socket], object]) -> list[Future[object]]:
    """What becomes of the two ends of a connection."""
    pair = socket.socketpair()

    def run(end: Callable[[socket.socket], object], connection: socket.socket) -> object:
        with connection:
            connection.settimeout(5)
            return end(connection)

    with ThreadPoolExecutor(2) as pool:
        return [pool.submit(run, *each) for each in zip(ends, pair, strict=True)]


def test_who_has_the_secret_is_known() -> None:
    one, other = both(
        lambda c: greet(c, KEY, 3, dials=True), lambda c: greet(c, KEY, 5, dials=False)
    )
    assert (one.result(), other.result()) == (5, 3)


def echo(connection: socket.socket) -> None:
    """Says what it hears, as one that has no secret of its own would."""
    while heard := connection.recv(1):
        connection.sendall(heard)


STRANGERS: dict[str, Callable[[socket.socket], object]] = {
    "another secret": lambda c: greet(c, b"a guess", 1, dials=True),
    "a mirror": echo,
    "nothing": lambda c: None,
    "noise": lambda c: c.sendall(b"GET / HTTP/1.1\r\n" * 100),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_is_refused(who: str) -> None:
    ours, _ = both(lambda c: greet(c, KEY, 0, dials=False), STRANGERS[who])
    with pytest.raises((PermissionError, EOFError, ConnectionError)):
        ours.result()


def test_ranks_meet_although_strangers_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each listener has its strangers in the queue before it is known to anybody."""
    made = socket.create_server

    def besieged(*args: object, **how: object) -> socket.socket:
        listener = made(*args, **how)  # type: ignore[arg-type]
        for what in (b"", b"x" * 1000):
            with socket.create_connection(listener.getsockname()) as stranger:
                stranger.sendall(what)
        return listener

    monkeypatch.setattr(socket, "create_server", besieged)
    store = HashStore()
    wanted = [[1], [0, 2], [1]]
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(meet, store, "127.0.0.1", me, wanted[me]) for me in range(3)]
        links = [each.result(20) for each in asked]
    assert [sorted(each) for each in links] == wanted
    links[0][1].sendall(b"0 to 1")
    links[2][1].sendall(b"2 to 1")
    assert (links[1][0].recv(9), links[1][2].recv(9)) == (b"0 to 1", b"2 to 1")
    for connection in itertools.chain.from_iterable(each.values() for each in links):
        connection.close()
