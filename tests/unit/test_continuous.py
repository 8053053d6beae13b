"""The schedule of decoders with a rank whose ids depend on all that lies in its blocks: whatever
happens, each stream gets the ids that it gets alone, and every stream comes to its end.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from python_mp.front.inbox import GroupEnded
from python_mp.model.errors import InvalidInput, RequestFailed
from python_mp.rank.engines.echo import RAISE, REFUSE
from python_mp.rank.engines.echo_decoder import fault_id
from tests.support.processes import until
from tests.support.replicas import LIMIT
from tests.support.stepping import Bench
from tests.support.streams import Parts, expected

KILLED = GroupEnded("rank 0 was killed by SIGKILL", killed=True)
CRASHED = GroupEnded("rank 0 was killed by SIGSEGV")
HUNG = GroupEnded("nothing got on", hung=True)


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Many begin alike."""
    shared = draw(st.sampled_from([0, 0, 16, 20, 33, 48]))
    own = draw(st.lists(st.integers(8, 60), min_size=1, max_size=30))
    return list(range(100, 100 + shared)) + own


EVENTS = st.one_of(
    st.tuples(st.just("ask"), prompts(), st.integers(1, 60)),
    st.tuples(st.just("ask"), prompts(), st.integers(1, 60)),
    st.tuples(st.just("steps"), st.integers(1, 12)),
    st.tuples(st.just("cut")),
    st.tuples(st.just("land")),
    st.tuples(st.just("hoard")),
    st.tuples(st.just("refuse")),
    st.tuples(st.just("die"), st.sampled_from([KILLED, CRASHED, HUNG])),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("poison"), prompts(), st.sampled_from([RAISE, REFUSE])),
)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(EVENTS, max_size=30),
    st.sampled_from([8, 9, 20, 64]),
    st.sampled_from([4, 17, 64, 1000]),
    st.sampled_from([1, 1, 2, 3]),
)
def test_every_stream_gets_what_it_gets_alone(
    events: list[Any], blocks: int, budget: int, depth: int
) -> None:
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), depth=depth, blocks=blocks, max_batch_tokens=budget)
        good: list[tuple[Parts, list[int], int]] = []
        bad: list[Parts] = []
        for event in events:
            match event:
                case ("ask", prompt, most):
                    if -(-(len(prompt) + most) // 16) <= blocks:
                        good.append((bench.ask(prompt, max_tokens=most), prompt, most))
                case ("steps", number):
                    for _ in range(number):
                        bench.step()
                case ("cut",):
                    bench.cut()
                case ("land",) if bench.flying:
                    bench.land()
                case ("hoard",):
                    bench.hoard()
                case ("refuse",):
                    bench.refuses = True
                case ("die", ended) if bench.flying and not ended.raised:
                    bench.die(ended)
                case ("cancel", number) if number < len(good) and not good[number][0].done.done():
                    bench.cancel(good.pop(number)[0])
                case ("poison", prompt, fault):
                    bad.append(bench.ask([*prompt, fault_id(fault)], max_tokens=1))
        bench.run()
        bench.close()
        for answer, prompt, most in good:
            if answer.done.done() and answer.done.exception():
                # Nobody can tell a stream from the killer that always comes when it is alone.
                assert ("refuse",) in events or sum(event[0] == "die" for event in events) >= 2
                continue
            wanted = expected(prompt, most)
            assert answer.ids == wanted
            assert answer.reason == ("stop" if wanted[-1] == 7 else "length")
        for answer in bad:
            assert isinstance(answer.done.exception(0), InvalidInput | RequestFailed)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(prompts(), st.integers(1, 60)), min_size=1, max_size=8),
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["home", "away"]), st.integers(1, 9)),
            st.tuples(st.sampled_from(["lend", "lend", "lose", "die", "hear"]), st.just(1)),
        ),
        max_size=40,
    ),
    st.sampled_from([4, 7, 12]),
)
def test_wherever_a_stream_is_computed_its_tokens_are_the_same(
    asked: list[tuple[list[int], int]], events: list[tuple[str, int]], room: int
) -> None:
    """It is lent, lost with its peer, goes on at home, and is lent again; at any moment.
    A peer's cache may have too little room for it, or for all of it."""
    with TemporaryDirectory() as folder:
        home = Bench(Path(folder), blocks=40, context=160)
        peer = Bench(Path(folder), blocks=room, context=160)
        asked = [(p, n if n % 4 else 160 - len(p)) for p, n in asked]
        most = [{"max_tokens": n} if n % 4 else {} for _, n in asked]
        answers = [home.ask(p, logprobs=n % 3, **m) for (p, n), m in zip(asked, most, strict=True)]
        for event, times in events:
            for _ in range(times):
                match event:
                    case "home":
                        home.step()
                    case "away":
                        peer.step()
                    case "lend":
                        home.lend(peer)
                    case "lose":
                        home.lose_peer()
                    case "hear":
                        home.hear()
                    case "die" if home.flying:
                        home.die(KILLED)
        peer.run()
        peer.schedule.stop()
        home.hear()
        home.lose_peer()
        home.run()
        home.close()
        for answer, (prompt, most) in zip(answers, asked, strict=True):
            if not answer.done.exception(0):
                assert answer.ids == expected(prompt, most)
                assert answer.joined("LOGPROBS").tolist() == [-float(t) for t in answer.ids]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def some(count: int, length: int = 20) -> list[list[int]]:
    return np.random.default_rng(count).integers(8, 60_000, (count, length)).tolist()


@pytest.mark.parametrize(("guilty", "company"), [(0, 1), (5, 16), (15, 16), (33, 40)])
def test_only_the_guilty_one_is_refused(folder: Path, guilty: int, company: int) -> None:
    """And after no more deaths than halving takes."""
    bench = Bench(folder, blocks=400)
    asked = some(company)
    asked[guilty].append(fault_id(RAISE, 3))
    answers = [bench.ask(prompt, max_tokens=5) for prompt in asked]
    bench.run()
    bench.close()
    for at, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        if at == guilty:
            with pytest.raises(RequestFailed, match=r"raised as asked \(3\)"):
                answer.done.result(0)
        else:
            assert answer.done.result(0) == expected(prompt, 5)
    assert bench.deaths <= 3 + np.log2(company)


def test_steps_behind_a_refused_one_count_for_nothing(folder: Path) -> None:
    """They may have read what it was to write."""
    bench = Bench(folder, depth=3, blocks=400, max_batch_tokens=40)
    shared = some(1, 64)[0]
    refused = bench.ask([*shared, fault_id(REFUSE)], max_tokens=3)
    asked = [shared + own for own in some(9, 6)]
    answers = [bench.ask(prompt, max_tokens=20, ignore_eos=True) for prompt in asked]
    bench.run()
    bench.close()
    assert isinstance(refused.done.exception(0), InvalidInput)
    assert [a.done.result(0) for a in answers] == [expected(p, 20, eos=-1) for p in asked]


@pytest.mark.parametrize("before", [17, 26, 35])
def test_suspects_are_computed_though_others_have_all_blocks(folder: Path, before: int) -> None:
    """A step of all that run is refused once, by ranks that cannot say for whom."""
    bench = Bench(folder, blocks=12, context=512)
    asked = some(4)
    answers = [bench.ask(prompt, max_tokens=80, ignore_eos=True) for prompt in asked]
    for _ in range(before):
        bench.step()
    bench.refuses = True
    bench.run()
    bench.close()
    assert [a.done.result(0) for a in answers] == [expected(p, 80, eos=-1) for p in asked]


@pytest.mark.parametrize("budget", [20, 8, 4])
@pytest.mark.parametrize("landed", [1, 2, 3])
def test_who_is_in_flight_keeps_his_blocks(folder: Path, budget: int, landed: int) -> None:
    """Also if a piece of his prompt has landed, and others are on their way."""
    bench = Bench(folder, depth=32, max_batch_tokens=budget)
    asked = [some(1, 16)[0], some(2, 33)[1]]
    answers = [bench.ask(asked[0], max_tokens=9)]
    while bench.cut():
        pass
    first = len(bench.flying)
    answers.append(bench.ask(asked[1], max_tokens=9))
    while bench.cut():
        pass
    bench.hoard()
    for _ in range(min(first + landed, len(bench.flying) - 1)):
        bench.land()
    assert not bench.cut(), "the older one needs a block, and the younger one cannot lose his"
    bench.run()
    bench.close()
    assert [a.done.result(0) for a in answers] == [expected(prompt, 9) for prompt in asked]


def test_who_gets_on_between_deaths_is_never_a_suspect(folder: Path) -> None:
    bench = Bench(folder, blocks=400)
    asked = some(20)
    answers = [bench.ask(prompt, max_tokens=30) for prompt in asked]
    bench.step()
    while bench.cut():
        assert len(bench.steps[-1].streams) == sum(not a.done.done() for a in answers)
        bench.die(CRASHED)
        assert not bench.schedule._suspects
        bench.step()
    bench.close()
    assert [a.done.result(0) for a in answers] == [expected(prompt, 30) for prompt in asked]


def test_the_oldest_always_gets_on(folder: Path) -> None:
    """With a cache for a fifth of what asks; each loses its blocks now and then."""
    bench = Bench(folder, blocks=20, context=512)
    asked = some(20, 30)
    answers = [bench.ask(prompt, max_tokens=40, ignore_eos=True) for prompt in asked]
    bench.run()
    bench.close()
    assert [a.done.result(0) for a in answers] == [expected(p, 40, eos=-1) for p in asked]
    assert bench.metrics._values["preemptions_total", ()] >= 2
    over: set[Parts] = set()
    for step in bench.steps:
        oldest = next(answer for answer in answers if answer not in over)
        assert any(stream.answer is oldest for stream in step.streams)
        over.update(stream.answer for stream in step.ended)  # type: ignore[misc]


def test_a_long_prompt_leaves_room_for_the_others_tokens(folder: Path) -> None:
    bench = Bench(folder, blocks=100, max_batch_tokens=32)
    for prompt in some(8, 3):
        bench.ask(prompt, max_tokens=60, ignore_eos=True)
    bench.step()
    long = bench.ask(some(1, 400)[0], max_tokens=2)
    while bench.step() and bench.steps[-1].tokens == 32:
        assert len(bench.steps[-1].streams) == 9
    assert len(bench.steps) == 1 + 1 + 400 // (32 - 8)
    bench.run()
    bench.close()
    assert long.done.result(0) == expected(some(1, 400)[0], 2)


def test_what_begins_alike_is_computed_once(folder: Path) -> None:
    """Also when all come at once, and the first has not been computed yet."""
    bench = Bench(folder, blocks=200, max_batch_tokens=1000)
    shared = some(1, 400)[0]
    asked = [shared + own for own in some(10, 40)]
    answers = [bench.ask(prompt, max_tokens=1) for prompt in asked]
    bench.run()
    bench.close()
    assert [a.done.result(0) for a in answers] == [expected(p, 1) for p in asked]
    assert sum(step.tokens for step in bench.steps) == 400 + 10 * 40
    assert [int(a.joined("USAGE")[2]) for a in answers] == [0] + [400] * 9


def test_blocks_of_half_of_the_streams_are_back_at_once(folder: Path) -> None:
    bench = Bench(folder, blocks=400)
    asked = some(20)
    answers = [bench.ask(prompt, max_tokens=30, ignore_eos=True) for prompt in asked]
    for _ in range(5):
        bench.step()
    bench.cut()
    for answer in answers[::2]:
        bench.cancel(answer)
    pool = bench.schedule._running.pool
    assert pool.blocks - pool.free == 10 * 2
    bench.run()
    bench.close()
    wanted = [expected(prompt, 30, eos=-1) for prompt in asked[1::2]]
    assert [a.done.result(0) for a in answers[1::2]] == wanted


def test_a_draw_depends_on_nothing_but_its_seed(folder: Path) -> None:
    bench = Bench(folder)
    asked = [bench.ask([9, 10], seed=seed, temperature=1.0, max_tokens=9) for seed in (1, 2, 1)]
    for _ in range(3):
        bench.step()
    bench.cut()
    bench.die(CRASHED)
    bench.run()
    bench.close()
    assert [a.done.result(0) for a in asked] == [expected([9, 10], 9, seed=s) for s in (1, 2, 1)]


def test_logprobs_come_with_their_tokens(folder: Path) -> None:
    bench = Bench(folder)
    answers = [bench.ask([9, n], logprobs=n, max_tokens=4, ignore_eos=True) for n in range(4)]
    plain = bench.ask([9, 9], max_tokens=4)
    bench.run()
    bench.close()
    for n, answer in enumerate(answers):
        assert answer.joined("LOGPROBS").tolist() == [-float(token) for token in answer.ids]
        if n:
            assert answer.joined("TOP_IDS").tolist() == [list(range(n))] * 4
    assert "LOGPROBS" not in plain.parts[0]


@pytest.mark.parametrize(
    ("prompt", "parameters", "said"),
    [
        ([1] * 512, {}, "has 512 tokens, with one to generate 513; the model's context has 512"),
        ([1] * 500, {"max_tokens": 13}, "500 tokens, with max_tokens 13 513; the model's context"),
        ([1, 1 << 20], {}, "holds 1048576; the model's ids are 0 to 1048575"),
        ([1, -1], {}, "holds -1"),
        ([1] * 400, {"max_tokens": 20}, "need 27 blocks of 16 in the KV cache, which has 20"),
        ([1], {"stop": "x"}, "no tokenizer.json, which parameter 'stop' needs"),
    ],
)
def test_what_can_never_be_computed_is_refused_with_its_numbers(
    folder: Path, prompt: list[int], parameters: dict[str, Any], said: str
) -> None:
    bench = Bench(folder, blocks=20)
    with pytest.raises(InvalidInput, match=said):
        bench.ask(prompt, **parameters)
    bench.close()


def test_what_streams_is_bound_by_its_own_time_out_alone(folder: Path) -> None:
    """That of the queue is for those that wait."""
    bench = Bench(folder)
    bench.ask([9], max_tokens=3, ignore_eos=True)
    (stream,) = bench.schedule
    stream.deadline, stream.ends_by = 5.0, 7.0
    bench.step()
    assert stream.deadline == 7.0
    bench.run()
    bench.close()


def test_min_tokens_keep_a_stop_from_counting(folder: Path) -> None:
    (first, *more) = expected([50, 51], 6)
    bench = Bench(folder)
    asked = [
        bench.ask([50, 51], stop_token_ids=f"[{first}]", max_tokens=6),
        bench.ask([50, 51], stop_token_ids=f"[{first}]", max_tokens=6, min_tokens=3),
    ]
    bench.run()
    bench.close()
    assert [(a.ids, a.reason) for a in asked] == [([first], "stop"), ([first, *more], "length")]


def _with(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def spoil(outputs: dict[str, Any]) -> None:
        outputs[name] = change(outputs[name])

    return spoil


SPOILT = {
    "below": (_with("NEXT_IDS", lambda ids: ids - (1 << 20)), "gave the next id -"),
    "beyond": (_with("NEXT_IDS", lambda ids: ids + (1 << 20)), "the model's ids are 0 to 1048575"),
    "too few": (_with("NEXT_IDS", lambda ids: ids[1:]), r"gave \[4\] next ids for 5 streams"),
    "another type": (_with("NEXT_IDS", lambda ids: ids.astype(np.float32)), "next ids for 5"),
    "none": (lambda outputs: outputs.pop("NEXT_IDS"), "gave no next ids for 5 streams"),
    "no logprobs": (lambda outputs: outputs.pop("TOP_IDS"), r"gave TOP_IDS \[\] for 5 streams"),
    "narrow": (_with("TOP_LOGPROBS", lambda top: top[:, :1]), r"TOP_LOGPROBS \[5, 1\]"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_what_no_rank_in_its_senses_would_answer_reaches_nobody(
    folder: Path, spoil: Callable[[dict[str, Any]], None], said: str
) -> None:
    """It ends the group, and all go on as if nothing had been."""
    bench = Bench(folder)
    answers = [bench.ask(prompt, max_tokens=8, logprobs=2) for prompt in some(5)]
    bench.step()
    bench.spoil = spoil
    bench.step()
    assert re.search(said, bench.faults[0])
    bench.run()
    bench.close()
    assert (bench.deaths, len(bench.faults)) == (1, 1)
    assert [a.done.result(0) for a in answers] == [expected(prompt, 8) for prompt in some(5)]


def test_logits_that_are_no_numbers_end_their_own_stream_alone(folder: Path) -> None:
    bench = Bench(folder)
    answers = [bench.ask(prompt, max_tokens=8) for prompt in some(5)]
    bench.step()
    bench.spoil = _with("NEXT_IDS", lambda ids: np.where(np.arange(5) == 3, -1, ids))
    bench.run()
    bench.close()
    assert bench.deaths == 0
    with pytest.raises(RequestFailed, match="not numbers"):
        answers.pop(3).done.result(0)
    asked = [prompt for at, prompt in enumerate(some(5)) if at != 3]
    assert [a.done.result(0) for a in answers] == [expected(prompt, 8) for prompt in asked]


class Unsendable(Parts):
    """Its second part fails, in the moment that `meanwhile` makes."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def part(self, outputs: Any) -> None:
        if len(self.parts) == 1:
            self._meanwhile()
            raise MemoryError("no shared memory is left")
        super().part(outputs)


@pytest.mark.parametrize("where", ["running", "in nobody's hands", "waiting", "lent"])
def test_nothing_follows_a_part_that_could_not_be_sent(folder: Path, where: str) -> None:
    """Wherever the stream is then."""
    fails, moved = threading.Event(), threading.Event()

    def meanwhile() -> None:
        fails.set()
        assert moved.wait(LIMIT)

    bench = Bench(folder)
    answer = Unsendable(meanwhile)
    bench.ask(range(100, 110), answer, max_tokens=6, ignore_eos=True)
    for _ in range(2):
        bench.step()
        until(lambda: len(answer.parts) == 1)
    assert fails.wait(LIMIT)
    if where != "running":
        in_hand = bench.schedule.in_hand(bench.flights)
        if where != "in nobody's hands":
            bench.schedule.put_back(in_hand)
        lent = bench.schedule.lend(lambda _: True) if where == "lent" else None
    moved.set()
    error = answer.done.exception(LIMIT)
    assert "could not be sent" in str(error)
    if where == "in nobody's hands":
        bench.schedule.put_back(in_hand)
    if where == "lent":
        bench.schedule.put_back([lent] if lent else [])
    bench._begin()
    bench.run()
    bench.close()
    assert len(answer.parts) == 1


def test_a_part_that_cannot_be_made_counts_as_one_that_cannot_be_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(folder)
    answers = [bench.ask([9, n], max_tokens=6, ignore_eos=True, logprobs=n) for n in range(2)]
    bench.step()
    until(lambda: all(len(answer.parts) == 1 for answer in answers))
    broken = Mock(side_effect=MemoryError)
    with monkeypatch.context() as patched:
        patched.setattr("python_mp.front.schedule.stream._logprobs", broken)
        bench.step()
        until(lambda: all(answer.done.done() for answer in answers))
    bench.run()
    bench.close()
    for answer in answers:
        assert "could not be sent" in str(answer.done.exception(0))
        assert len(answer.parts) == 1
