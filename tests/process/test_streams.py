"""A replica of a decoder, behind the real forkserver: streams, and what becomes of them when ranks
die. The ranks keep ids in their blocks, and each next one depends on all of them.
"""

import gc
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from python_mp.model.errors import InvalidInput, RequestFailed, Unavailable
from python_mp.rank.engines.echo import EXIT, HANG, RAISE, REFUSE
from python_mp.rank.engines.echo_decoder import fault_id
from tests.support.configs import decoder_config
from tests.support.processes import until
from tests.support.replicas import LIMIT, Served, counted, pids, served
from tests.support.streams import Parts, expected

pytestmark = pytest.mark.usefixtures("one_forkserver")


@contextmanager
def decoder(folder: Path, **more: Any) -> Iterator[Served]:
    """When all is answered, every block is free again."""
    with served(decoder_config(folder, **more), folder) as replica:
        yield replica
        running = replica.replica._schedule._running  # type: ignore[attr-defined]
        until(lambda: running.pool.free == running.pool.blocks)


def ask(replica: Served, prompt: list[int], **parameters: Any) -> Parts:
    answer = Parts()
    replica.stream(prompt, answer, **parameters)
    return answer


def prompts(count: int, most: int = 60) -> list[list[int]]:
    draw = random.Random(count)
    return [draw.choices(range(8, 60_000), k=draw.randint(1, most)) for _ in range(count)]


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_many_at_once_each_get_their_own_ids(tmp_path: Path, tp: int, pp: int) -> None:
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    with decoder(tmp_path, max_batch_tokens=64, kv_cache_blocks=25, **sizes) as replica:
        asked = prompts(40)
        answers = [ask(replica, prompt, max_tokens=80) for prompt in asked]
        wanted = [expected(prompt, 80) for prompt in asked]
        assert [answer.done.result(LIMIT) for answer in answers] == wanted
        assert counted(replica, "requests_total", "restarts_total") == [40, 0]
        assert counted(replica, "generated_tokens_total") == [sum(map(len, wanted))]
        assert counted(replica, "preemptions_total")[0] > 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_streams_go_on_where_they_were(tmp_path: Path, how: signal.Signals) -> None:
    sizes = {"tensor_parallel_size": 2, "hang_seconds": 1, "module.step_milliseconds": 3}
    with decoder(tmp_path, **sizes) as replica:
        asked = prompts(20)
        answers = [ask(replica, prompt, max_tokens=150, ignore_eos=True) for prompt in asked]
        for generation in range(1, 4):
            until(lambda at=generation: all(len(answer.ids) > at * 20 for answer in answers))
            os.kill(pids(replica)[1], how)
            until(lambda at=generation: serves(replica, at + 1))
        wanted = [expected(prompt, 150, eos=-1) for prompt in asked]
        assert [answer.done.result(LIMIT) for answer in answers] == wanted


@pytest.mark.parametrize(
    ("fault", "wrong", "said"),
    [
        (RAISE, RequestFailed, r"raised as asked \(3\)"),
        (EXIT, RequestFailed, "exited with 3"),
        (HANG, RequestFailed, "has got on for 1 s"),
        (REFUSE, InvalidInput, r"refused as asked \(3\)"),
    ],
)
def test_only_the_guilty_one_is_refused(
    tmp_path: Path, fault: int, wrong: type[Exception], said: str
) -> None:
    with decoder(tmp_path, hang_seconds=1) as replica:
        asked = prompts(12)
        answers = [ask(replica, prompt, max_tokens=20, ignore_eos=True) for prompt in asked]
        guilty = ask(replica, [9, 8, fault_id(fault, 3)], max_tokens=5)
        with pytest.raises(wrong, match=said):
            guilty.done.result(LIMIT)
        wanted = [expected(prompt, 20, eos=-1) for prompt in asked]
        assert [answer.done.result(LIMIT) for answer in answers] == wanted
        again = Parts()
        if fault != REFUSE:
            replica.stream([9, 8, fault_id(fault, 3)], again, max_tokens=5)
            with pytest.raises(RequestFailed, match="has ended two groups"):
                again.done.result(LIMIT)


def test_who_goes_away_frees_his_blocks(tmp_path: Path) -> None:
    with decoder(tmp_path, **{"module.step_milliseconds": 5}) as replica:
        gone, stays = (ask(replica, prompt, max_tokens=400) for prompt in prompts(2))
        until(lambda: len(gone.ids) > 3)
        gone.cancelled = True
        until(lambda: gone.done.done())
        assert len(gone.ids) < 399
        assert stays.done.result(LIMIT) == expected(prompts(2)[1], 400)


class Unheard(Parts):
    def part(self, outputs: Any) -> None:
        raise OSError("no such client")


def test_a_part_that_cannot_be_sent_ends_only_its_stream(tmp_path: Path) -> None:
    with decoder(tmp_path, **{"module.step_milliseconds": 2}) as replica:
        unheard, other = Unheard(), Parts()
        for answer in (unheard, other):
            replica.stream([9, 10], answer, max_tokens=60, ignore_eos=True)
        with pytest.raises(RequestFailed, match="could not be sent"):
            unheard.done.result(LIMIT)
        assert other.done.result(LIMIT) == expected([9, 10], 60, eos=-1)


def test_a_stop_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    with served(decoder_config(tmp_path, max_running_sequences=2), tmp_path) as replica:
        answers = [ask(replica, prompt, ignore_eos=True) for prompt in prompts(6)]
        until(lambda: len(answers[0].ids) > 2)
    for answer in answers:
        if answer.done.exception(LIMIT):
            assert isinstance(answer.done.exception(), Unavailable)


def serves(replica: Served, generation: float) -> bool:
    return counted(replica, "generation", "ranks_alive") == [generation, len(pids(replica))]


def count(running: list[tuple[list[int], int, Parts]]) -> int:
    return sum(len(answer.ids) for _, _, answer in running)


@pytest.mark.campaign
@pytest.mark.timeout(300)
def test_a_minute_of_kills(tmp_path: Path) -> None:
    """100 streams, a rank killed every 2 s and one frozen every 30 s."""
    sizes = {"tensor_parallel_size": 2, "hang_seconds": 10, "module.step_milliseconds": 1}
    draw = random.Random(1)
    with decoder(tmp_path, kv_cache_blocks=3000, context=1024, **sizes) as replica:
        end, done, waits = time.monotonic() + 60, 0, []
        running: list[tuple[list[int], int, Parts]] = []
        next_kill, next_freeze = time.monotonic() + 2, time.monotonic() + 30
        while time.monotonic() < end or running:
            while len(running) < 100 and time.monotonic() < end:
                prompt = draw.choices(range(8, 60_000), k=draw.randint(1, 200))
                most = draw.randint(1, 400)
                running.append((prompt, most, ask(replica, prompt, max_tokens=most)))
            for each in [r for r in running if r[2].done.done()]:
                running.remove(each)
                assert each[2].done.result() == expected(each[0], each[1])
                done += 1
            now = time.monotonic()
            if now < end and now > next_kill and counted(replica, "ranks_alive") == [2]:
                froze = now > next_freeze
                next_kill, next_freeze = now + 2, now + 30 if froze else next_freeze
                before = count(running)
                os.kill(draw.choice(pids(replica)), signal.SIGSTOP if froze else signal.SIGKILL)
                killed = time.monotonic()
                (generation,) = counted(replica, "generation")
                until(lambda at=generation: serves(replica, at + 1))
                back = count(running)
                until(lambda at=back, those=running: count(those) > at or not those)
                waits.append((froze, time.monotonic() - killed, back - before))
            time.sleep(0.01)
        print(f"{done} streams; seconds to the next token after kills and freezes: {waits}")
        assert done > 100


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    """Two replicas, of which the first has no ranks any more and does not get new ones."""
    cause = tmp_path / "cause"
    sizes = {"replicas": 2, "module.die_if": str(cause), "module.step_milliseconds": 3}
    config = decoder_config(tmp_path, **sizes)
    with served(config, tmp_path) as first, served(config, tmp_path, index=1) as second:
        yield first, second


def lose_ranks(replica: Served, folder: Path) -> None:
    (folder / "cause").touch()
    os.kill(pids(replica)[0], signal.SIGKILL)
    until(lambda: bool(replica.replica._outage.reason))


def test_a_peer_goes_on_with_what_runs_and_what_waits(
    tmp_path: Path, pair: tuple[Served, Served]
) -> None:
    """And home goes on when the peer is lost, too: no token is lost, doubled or changed."""
    first, second = pair
    asked = prompts(12)
    how: list[dict[str, Any]] = [{}, {"logprobs": 2}, {"temperature": 1.0, "seed": 5}]
    answers = [
        ask(first, prompt, max_tokens=300, ignore_eos=True, **how[at % 3])
        for at, prompt in enumerate(asked)
    ]
    until(lambda: all(len(answer.ids) > 5 for answer in answers))
    lose_ranks(first, tmp_path)
    answers.append(ask(first, [9, 8], max_tokens=300, ignore_eos=True))
    wanted = [expected(p, 300, eos=-1, seed=5 * (at % 3 == 2)) for at, p in enumerate(asked)]
    wanted.append(expected([9, 8], 300, eos=-1))
    until(lambda: all(len(answer.ids) > 50 for answer in answers))
    gone = ask(first, [9, 9], ignore_eos=True)
    until(lambda: len(gone.ids) > 5)
    gone.cancelled = True
    until(gone.done.done)
    assert counted(first, "ranks_alive") == [0]
    (tmp_path / "cause").unlink()
    os.kill(pids(second)[0], signal.SIGKILL)
    assert [answer.done.result(LIMIT) for answer in answers] == wanted
    for answer in answers[1:12:3]:
        assert answer.joined("LOGPROBS").tolist() == [-float(token) for token in answer.ids]
    assert counted(first, "handed_over_total")[0] > 0
    for replica in pair:
        running = replica.replica._schedule._running  # type: ignore[attr-defined]
        until(lambda of=running: of.pool.free == of.pool.blocks)


@pytest.mark.parametrize("is_the_same", [True, False])
def test_a_newer_version_goes_on_with_streams_if_it_is_the_same_model(
    tmp_path: Path, is_the_same: bool
) -> None:
    sizes = {"drain_seconds": 1, "module.step_milliseconds": 5, "replicas": 2}
    newer = decoder_config(tmp_path, version="2", eos=7 if is_the_same else 8, **sizes)
    asked = prompts(8)
    with served(decoder_config(tmp_path, **sizes), tmp_path) as first:
        answers = [ask(first, prompt, max_tokens=450, ignore_eos=True) for prompt in asked]
        until(lambda: all(len(answer.ids) > 3 for answer in answers))
        with served(newer, tmp_path, index=1) as second:
            if is_the_same:
                wanted = [expected(prompt, 450, eos=-1) for prompt in asked]
                assert [answer.done.result(LIMIT) for answer in answers] == wanted
                assert counted(second, "requests_total") == [8]
                assert not first.replica.serves
                return
            for answer in answers:
                with pytest.raises(Unavailable, match="version 2, another model, has taken the"):
                    answer.done.result(LIMIT)
            assert first.replica.serves


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_ten_thousand_streams_leave_nothing(tmp_path: Path) -> None:
    """In the front and its rank; of each of the first thousands as much as of the last."""
    draw = random.Random(1)
    with decoder(tmp_path, kv_cache_blocks=400) as replica:
        held = []
        for _ in range(10):
            asked = [draw.choices(range(8, 60_000), k=draw.randint(1, 40)) for _ in range(1000)]
            answers = [ask(replica, prompt, max_tokens=4) for prompt in asked]
            wanted = [expected(prompt, 4) for prompt in asked]
            assert [answer.done.result(LIMIT) for answer in answers] == wanted
            del answers
            gc.collect()
            held.append([resident(pid) for pid in (os.getpid(), *pids(replica))])
        print(f"MiB of front and rank after each thousand: {held}")
        for before, after in zip(held[2], held[-1], strict=True):
            assert after < before + 8


def resident(pid: int) -> float:
    """MiB."""
    return psutil.Process(pid).memory_info().rss / (1 << 20)
