"""`python -m build_scripts.plan`: the search, what it keeps, what it writes, what it predicts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import layouts
from build_scripts.errors import BuildError
from build_scripts.new.pbtxt_parts import Layout
from build_scripts.places import REPOSITORY, WORKSPACE
from build_scripts.plan import (
    alpha_beta,
    candidates,
    elsewhere,
    machines,
    pareto,
    saving,
    scatter,
    workload,
)
from build_scripts.plan.__main__ import with_ranks
from build_scripts.plan.alpha_beta import Link, Machine, Work
from build_scripts.plan.candidates import Choice
from build_scripts.plan.descent import Descent
from build_scripts.plan.fitting import Seen, fit
from build_scripts.plan.pareto import Row
from build_scripts.plan.race import Race, Records, Rejected, usual
from build_scripts.plan.stand import config
from clients.closed_loop import Load

START = Choice("torch", "float32")
AXES: Mapping[str, list[dict[str, Any]]] = {
    "engine": [{"engine": "onnxruntime", "dtype": "float32"}, {"engine": "torch", "dtype": "int8"}],
    "batch": [{"max_batch_tokens": n} for n in (512, 1024, 4096)],
    "delay": [{"queue_delay_us": n} for n in (0, 500, 2000)],
}
SOME = 30
factors = st.floats(0.3, 3.0)


@dataclass
class Fake:
    """A candidate's rate and p99 are products of what its values are worth; `calls` are loads."""

    rates: Callable[[Choice], float]
    refused: frozenset[Any] = frozenset()
    calls: int = 0
    up: set[Choice] = field(default_factory=set)

    def keep(self, *kept: Choice) -> None:
        for each in kept:
            if each.engine in self.refused:
                raise Rejected(f"no {each.engine} here")
        self.up = {*kept}

    def load(self, choice: Choice) -> Load:
        assert choice in self.up
        self.calls += 1
        rate = self.rates(choice)
        return Load("fake", rate, 10 / rate, 100 / rate + choice.queue_delay_us / 100)


def worth(values: list[float]) -> Callable[[Choice], float]:
    """Each change of an axis is worth one of the values."""
    keys = [*(change for axis in AXES.values() for change in axis), {"engine": "torch"}]
    by_key = dict(zip(map(str, keys), values, strict=False))

    def rate(choice: Choice) -> float:
        found = [
            by_key[str(change)]
            for change in keys
            if all(getattr(choice, name) == value for name, value in change.items())
        ]
        return 100 * math.prod(found)

    return rate


def every() -> list[Choice]:
    engines = [{"engine": "torch", "dtype": "float32"}, *AXES["engine"]]
    return [
        replace(START, **engine, **batch, **delay)
        for engine in engines
        for batch in AXES["batch"]
        for delay in AXES["delay"]
    ]


def race(fake: Fake, path: Path, latency_ms: float = math.inf) -> Race:
    return Race(fake, Records(path), "context", latency_ms)


def never() -> bool:
    return False


@settings(deadline=None, max_examples=SOME)
@given(values=st.lists(factors, min_size=9, max_size=9))
def test_the_search_finds_the_best_and_a_second_run_measures_nothing(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    """Where axes do not depend on each other; within what is a tie, for each axis."""
    path, rates = tmp_path_factory.mktemp("plan") / "records.jsonl", worth(values)
    fake = Fake(rates)
    search = Descent(race(fake, path), AXES, never)
    best = search.best(START)
    assert search.is_whole
    assert rates(best) * 1.02 ** len(AXES) >= max(map(rates, every()))
    for is_late in (never, lambda: True):
        again = Fake(rates)
        assert Descent(race(again, path), AXES, is_late).best(START) == best
        assert again.calls == 0


@settings(deadline=None, max_examples=SOME)
@given(values=st.lists(factors, min_size=9, max_size=9), bound=st.floats(0.2, 30))
def test_a_bound_of_latency_is_kept_where_it_can_be(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], bound: float
) -> None:
    fake = Fake(worth(values))
    path = tmp_path_factory.mktemp("plan") / "records.jsonl"
    search = Descent(race(fake, path, bound), AXES, never)
    best = search.best(START)
    fake.up = {START, best, *every()}
    if any(fake.load(each.challenger).p99_ms <= bound for each in search.results):
        assert fake.load(best).p99_ms <= bound


@settings(deadline=None, max_examples=SOME)
@given(runs=st.integers(1, 4), cut=st.booleans())
def test_a_run_that_was_ended_goes_on(
    tmp_path_factory: pytest.TempPathFactory, runs: int, cut: bool
) -> None:
    """As if there had been one, also when it was killed while it wrote."""
    path, rates = tmp_path_factory.mktemp("plan") / "records.jsonl", worth([*range(1, 10)])
    whole = Descent(race(Fake(rates), path.with_name("whole")), AXES, never)
    expected, total = whole.best(START), whole.race.measured
    for _ in range(runs):
        one = race(Fake(rates), path)
        Descent(one, AXES, lambda one=one: one.measured > 2).best(START)  # type: ignore[misc]
        if cut:
            path.write_text(path.read_text() + '{"key": "x", "pa')
    last = race(Fake(rates), path)
    assert Descent(last, AXES, never).best(START) == expected
    assert last.measured < total


def test_what_cannot_be_is_passed_over_and_said(tmp_path: Path) -> None:
    fake = Fake(worth([3.0] * 9), frozenset({"onnxruntime"}))
    search = Descent(race(fake, tmp_path / "r"), AXES, never)
    assert search.best(START).engine != "onnxruntime"
    assert {each.why for each in search.results} == {"", "no onnxruntime here"}
    tried = [each.challenger.engine for each in search.results].count("onnxruntime")
    assert tried == 1, "what cannot be is not tried with others"


@settings(deadline=None, max_examples=SOME)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    rows = [Row(START, Load("", rate, 1.0, p99)) for rate, p99 in points]
    rows.append(Row(START, None, "rejected"))
    found = {(r.load.requests_per_second, r.load.p99_ms) for r in pareto.front(rows) if r.load}
    assert found == {
        (rate, p99)
        for rate, p99 in points
        if not any((a >= rate and b <= p99) and (a, b) != (rate, p99) for a, b in points)
    }


def test_the_plot_has_every_candidate() -> None:
    rows = [Row(each, Load("", n + 1.0, 1.0, n + 1.0)) for n, each in enumerate(every())]
    drawn = ET.fromstring(scatter.svg(rows, {START: "now & chosen"}, "<a title>"))
    said = [each.text or "" for each in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert [text.partition(":")[0] for text in said] == [*map(str, every())]
    assert "".join(scatter.svg([], {}, "nothing"))


def test_medians_are_of_each_figure() -> None:
    loads = [Load("a", rate, 1.0, 10 - rate) for rate in (1.0, 2.0, 9.0)]
    assert usual(loads) == Load("a", 2.0, 1.0, 8.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no lengths"),
        ("# nothing\n0 5\n", "has no lengths"),
        ("12\nx\n", "line 2: 'x' is not LENGTH"),
        ("12 3 4\n", "line 1"),
        ("-3\n", "line 1"),
        ("1.5\n", "line 1"),
    ],
)
def test_bad_lengths_are_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "lengths").write_text(text)
    with pytest.raises(BuildError, match=sentence):
        workload.read(tmp_path / "lengths")


def test_lengths_are_drawn_as_often_as_they_are_said(tmp_path: Path) -> None:
    (tmp_path / "lengths").write_text("10 3 # usual\n5000\n10 0\n")
    drawn = workload.drawn(workload.read(tmp_path / "lengths"), 512)
    assert {*drawn} == {10, 512}
    assert 0.6 < drawn.count(10) / len(drawn) < 0.9
    assert max(workload.read(workload.LENGTHS)) == 122


# Predictions

seconds, shares = st.floats(1e-6, 1e-2), st.floats(0.0, 0.9)
links = st.builds(Link, st.floats(0, 1e-4), st.floats(0, 1e-4), st.floats(1e8, 1e12))
there = st.builds(
    Machine,
    devices=st.sampled_from([1, 2, 8]),
    hosts=st.sampled_from([1, 4, 128]),
    batch=seconds,
    token=seconds,
    undivided=shares,
    single=shares,
    near=st.lists(links, min_size=1, max_size=2),
    far=st.lists(links, min_size=1, max_size=2),
    request=seconds,
    cores=st.sampled_from([1, 16]),
    is_shared=st.just(False),
)
sizes = st.sampled_from([1, 2, 4, 8, 64])
laid_out = st.builds(Layout, sizes, sizes, sizes)
asked = st.builds(
    Work,
    layers=st.integers(1, 100),
    row_nbytes=st.integers(2, 1 << 15),
    tokens=st.floats(1, 500),
    in_flight=st.integers(1, 10_000),
    most=st.sampled_from([512, 1 << 14]),
)


@settings(deadline=None, max_examples=SOME)
@given(there, asked, laid_out, st.floats(1, 10))
def test_more_of_what_helps_never_harms(
    machine: Machine, work: Work, layout: Layout, by: float
) -> None:
    def better(name: str) -> list[Link]:
        return [
            Link(link.start / by, link.hop / by, link.bandwidth * by)
            for link in getattr(machine, name)
        ]

    first = alpha_beta.forecast(machine, work, layout)
    faster = [(replace(machine, **{n: better(n)}), work, layout) for n in ("near", "far")]
    names = "batch", "token", "request", "undivided"
    shorter = [replace(machine, **{name: getattr(machine, name) / by}) for name in names]
    faster += [(each, work, layout) for each in shorter]
    faster.append((machine, replace(work, tokens=max(1.0, work.tokens / by)), layout))
    for each in faster:
        other = alpha_beta.forecast(*each)
        assert other.rate >= first.rate * (1 - 1e-9)
        assert other.latency <= first.latency * (1 + 1e-9)
    crowd = replace(work, in_flight=int(work.in_flight * by))
    assert alpha_beta.forecast(machine, crowd, layout).rate >= first.rate * (1 - 1e-9)
    more = replace(layout, replicas=layout.replicas * 2)
    assert alpha_beta.forecast(machine, work, more).rate >= first.rate * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_constants_of_this_machine_give_back_what_was_measured(seed: int) -> None:
    """Whatever they are: measured values are made with the model, then fitted."""
    random = np.random.default_rng(seed)
    request, undivided, single, start = map(float, random.uniform(0.3, 3.0, 4))
    kinds = [(random.uniform(5e-4, 1e-2), random.uniform(1e-5, 2e-4)) for _ in range(2)]
    link = [Link(2e-5 * start, 0.0, 4e9)]
    work = Work(6, 1536, 38.0, 32, 4096)
    truth = {
        f"kind {n}": Machine(
            *(2, 1, *kind, 0.1 * undivided, 0.1 * single, link, link, 5e-4 * request, 2, True)
        )
        for n, kind in enumerate(kinds)
    }
    cases = [
        (layout, threads, in_flight)
        for layout, threads in [
            *((Layout(), 1), (Layout(), 2), (Layout(2), 1)),
            *((Layout(1, 2), 1), (Layout(1, 1, 2), 1)),
        ]
        for in_flight in (1, 32)
    ]
    seen = []
    for kind, machine in truth.items():
        for layout, threads, in_flight in cases:
            what = replace(work, in_flight=in_flight)
            rate = alpha_beta.forecast(machine, what, layout, threads).rate
            seen.append(Seen(kind, layout, threads, what, rate))
    found = fit(seen, 2)
    for each in seen:
        rate = alpha_beta.forecast(found[each.kind], each.work, each.layout, each.threads).rate
        assert rate == pytest.approx(each.rate, rel=0.03)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("gpus=0", "1 to 1024 GPUs"),
        ("nvlink", "1 to 1024 GPUs"),
        ("gpus=8,hosts=129", "1 to 1024 GPUs"),
        ("gpus=8,nvlnk", "'nvlnk' says nothing"),
        ("gpus=eight", "'gpus=eight' says nothing"),
        ("gpus=8,network=0", "1 to 1024 GPUs"),
        ("cores=0,hosts=2", "1 to 1024 GPUs"),
        ("hosts=2", "1 to 1024 GPUs"),
    ],
)
def test_words_that_are_no_machine_are_refused(words: str, sentence: str) -> None:
    with pytest.raises(BuildError, match=sentence):
        machines.read(words)


def test_layouts_elsewhere_are_those_that_fit() -> None:
    large = machines.Size(70_000_000_000, 80, 8192, 64, 140_000_000_000)
    nvlink, pcie = (
        machines.machine(machines.read(f"gpus=8,hosts=128,{link}"), large)
        for link in ("nvlink", "pcie")
    )
    found = [*elsewhere.layouts(nvlink, large)]
    assert len(found) == len({*found}) > 10
    for layout in found:
        assert layout.world_size * layout.replicas <= 1024
        assert 2 <= layout.world_size <= 64, "one GPU has no room, and a replica 64 ranks at most"
    work = Work(80, 16384, 500.0, 4096, 16384)
    for layout in found:
        rates = [alpha_beta.forecast(each, work, layout).rate for each in (nvlink, pcie)]
        assert rates[0] >= rates[1] * (1 - 1e-9)


@pytest.mark.parametrize(("nbytes", "microseconds"), [(1536, 132), (49_152, 172), (786_432, 1406)])
def test_hosts_without_gpus_meet_as_was_measured(nbytes: int, microseconds: float) -> None:
    """By `make bench ARGS=collectives`: float32, two hosts of two ranks."""
    model = machines.Size(10_600_000, 6, 384, 12, 91_000_000)
    two = machines.machine(machines.read("cores=2,hosts=2"), model)
    found = 1e6 * alpha_beta.all_reduce(two, 4, nbytes)
    assert microseconds / 1.5 < found < microseconds * 1.5
    assert alpha_beta.all_reduce(two, 2, nbytes) < found / 10


def test_stages_cross_hosts_more_cheaply_than_tensor_parallelism() -> None:
    large = machines.Size(8_000_000_000, 32, 4096, 32, 32_000_000_000)
    there = machines.machine(machines.read("cores=16,hosts=2,network=10"), large)
    work = Work(32, 4 * 4096, 500.0, 64, 8192)
    across = [alpha_beta.forecast(there, work, layout) for layout in (Layout(32), Layout(16, 2))]
    assert across[0].rate < across[1].rate
    assert len({*elsewhere.layouts(there, large)}) > 10


# Files


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("embed", "embed_tokenizer", "embed_encoder", "embed_vectors"):
        ignored = shutil.ignore_patterns("[0-9]*")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    return tmp_path


def test_a_choice_is_saved_whole_or_said(copied: Path) -> None:
    """As long as nobody has edited the files, and then again."""
    now = candidates.present(with_ranks("embed", copied, WORKSPACE))
    wide = replace(now, tensor_parallel_size=1, replicas=2, threads=1, max_batch_tokens=1024)
    other = replace(wide, engine="torch", dtype="bfloat16", queue_delay_us=500)
    aot = replace(other, engine="aot_inductor", dtype="float32", threads=0, queue_delay_us=0)
    for choice in (wide, other, aot):
        job = with_ranks("embed_encoder", copied, WORKSPACE)
        assert saving.save(job, choice) == [job.home / "recipe.toml", job.folder / "config.pbtxt"]
        job = with_ranks("embed", copied, WORKSPACE)
        assert candidates.present(job) == choice
    path = copied / "embed_encoder" / "config.pbtxt"
    path.write_text(path.read_text() + "# mine\n")
    before = path.read_bytes(), (copied / "embed" / "recipe.toml").read_bytes()
    assert saving.save(with_ranks("embed", copied, WORKSPACE), other) == []
    assert before == (path.read_bytes(), (copied / "embed" / "recipe.toml").read_bytes())
    said = [*saving.lines(job, other)]
    assert 'engine = "torch"' in said
    assert "dynamic_batching { max_queue_delay_microseconds: 500 }" in said


def test_a_candidates_config_says_what_was_chosen(copied: Path) -> None:
    job = with_ranks("embed", copied, WORKSPACE)
    for change in ({}, {"tensor_parallel_size": 1, "replicas": 3, "threads": 2}):
        choice = replace(candidates.present(job), max_batch_tokens=512, queue_delay_us=7, **change)
        folder = copied / "embed_encoder"
        (folder / "config.pbtxt").write_text(config(job, choice, "embed_encoder", 500))
        job = with_ranks("embed", copied, WORKSPACE)
        assert candidates.present(job) == choice
        assert job.config.parameters.max_queue_requests == 1000


def test_what_cannot_be_planned_is_said(copied: Path) -> None:
    with pytest.raises(BuildError, match="has no ranks"):
        with_ranks("embed_vectors", copied, WORKSPACE)
    job = with_ranks("embed", copied, WORKSPACE)
    axes = candidates.axes(job, 8)
    laid_out = [candidates.changed(candidates.present(job), each) for each in axes["layout"]]
    assert all(each.layout.world_size * each.replicas <= 8 for each in laid_out)
    assert {each.layout.world_size for each in laid_out} == {1, 2, 4, 8}
    assert {each["max_batch_tokens"] for each in axes["batch"]} == {512, 1024, 2048, 4096}


def test_the_benchmark_predicts_layouts_that_it_did_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where machines are as the model has them."""
    link, tokens, bound = [Link(3e-5, 0.0, 4e9)], 38.0, 4096

    def rate(choice: Choice, in_flight: int) -> float:
        own = (2e-3, 4e-5) if choice.engine == "torch" else (1e-3, 2e-5)
        machine = Machine(*(2, 1, *own, 0.15, 0.2, link, link, 6e-4, 2, True))
        work = Work(layouts.LAYERS, layouts.ROW_NBYTES, tokens, in_flight, bound)
        return alpha_beta.forecast(machine, work, choice.layout, choice.threads).rate

    def measured(cases: list[tuple[Choice, int]]) -> Any:
        return {case: rate(*case) for case in cases}, tokens, bound

    monkeypatch.setattr(layouts, "_measure", measured)
    monkeypatch.setattr(layouts, "_job", lambda: SimpleNamespace(on_gpu=False))
    monkeypatch.setattr(candidates, "devices", lambda _job: 2)
    found = [*layouts.run()]
    assert len(found) == 20
    assert sum(each["fitted"] for each in found) == 8
    assert all(0.95 < each["predicted / measured"] < 1.05 for each in found)
