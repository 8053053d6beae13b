"""A replica whose later ranks stand on other hosts: here other processes, over loopback."""

import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from python_mp.front.supervise.other_hosts import announce
from python_mp.model.errors import LoadError, RequestFailed, Unavailable
from python_mp.rank.engines.echo import EXIT, HANG, RAISE, SEGFAULT
from python_mp.wire.exchange_line import VARIABLE
from tests.support.configs import decoder_config, module_config
from tests.support.other_hosts import QUICK, Hosts, Program, echo, hosts
from tests.support.processes import alive, children, cpu_seconds, python, until
from tests.support.replicas import LIMIT, Fault, ask, counted, served, values
from tests.support.streams import Parts, expected

AGENT = "python_mp.agent"
IDLE_SECONDS = 3.0
LEASE = float(QUICK[-1])
NOISE = 3
"""Times as long as on a machine that does nothing else."""


@pytest.fixture(name="two")
def two_hosts(tmp_path: Path) -> Iterator[Hosts]:
    """This host, and b."""
    with hosts(tmp_path, "b") as made:
        yield made


def ranks_of(agent: Program) -> list[int]:
    return [pid for forkserver in children(agent.process.pid) for pid in children(forkserver)]


@pytest.mark.parametrize(("pp", "count"), [(2, 2), (4, 2), (3, 3)])
def test_answers_are_those_of_one_host(tmp_path: Path, pp: int, count: int) -> None:
    names = ["b", "c"][: count - 1]
    with hosts(tmp_path, *names), served(echo(tmp_path, pp, count), tmp_path) as replica:
        asked = [ask(replica, n, n + 1) for n in range(50)]
        assert values(asked) == [[n, n + 1] for n in range(50)]


def test_an_agent_that_dies_loses_no_request(two: Hosts, tmp_path: Path) -> None:
    agent = two.agents["b"]
    with served(echo(tmp_path), tmp_path) as replica:
        assert values([ask(replica, 1)]) == [[1]]
        ranks = ranks_of(agent)
        agent.kill()
        asked = [ask(replica, n) for n in range(9)]
        two.agent("b")
        assert values(asked) == [[n] for n in range(9)]
        assert counted(replica, "restarts_total") == [1]
        until(lambda: not any(map(alive, ranks)))


def test_another_host_takes_the_place_of_one_that_is_silent(two: Hosts, tmp_path: Path) -> None:
    """As if the link to b were cut: nobody is told, and b cannot know what is done without it."""
    silent = two.agents["b"]
    with served(echo(tmp_path), tmp_path) as replica:
        two.connected("c")
        ranks = ranks_of(silent)
        silent.signal(signal.SIGSTOP)
        assert values([ask(replica, n) for n in range(9)]) == [[n] for n in range(9)]
        assert ranks_of(two.agents["c"])
        silent.signal(signal.SIGCONT)
        silent.says("no word of the exchange for 2 s|the exchange has hung up", since=1)
        until(lambda: not any(map(alive, ranks)))
        silent.says("connected to", since=2)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ((EXIT, 1, 3), "rank 1 on host b exited with 3"),
        ((RAISE, 1, 3), "rank 1 raised: RuntimeError: raised as asked"),
        ((SEGFAULT, 1, 0), r"rank 1 on host b was killed by SIGSEGV[^$]*Fatal Python error"),
        ((HANG, 1, 0), r"no rank has got on[^$]*rank 0,[^$]*rank 1 on host b, S:\n[^$]*echo.py"),
    ],
)
@pytest.mark.usefixtures("two")
def test_how_it_ended_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Fault, said: str
) -> None:
    with served(echo(tmp_path), tmp_path) as replica:
        guilty = ask(replica, 1, fault=fault)
        with pytest.raises(RequestFailed):
            guilty.result(LIMIT)
        assert values([ask(replica, 2)]) == [[2]]
    assert re.search(said, caplog.text), caplog.text


def test_without_hosts_requests_are_refused_and_the_reason_is_told(
    two: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("python_mp.front.supervise.host_search._KEPT_SECONDS", 0.5)
    with served(echo(tmp_path), tmp_path) as replica:
        two.agents["b"].kill()
        with pytest.raises(
            Unavailable, match="agents on 1 other hosts, and 0 are connected; b was"
        ):
            ask(replica, 1).result(LIMIT)
        two.connected("b")
        until(lambda: replica.replica.serves)
        assert values([ask(replica, 2)]) == [[2]]


def test_an_exchange_that_dies_is_found_again(two: Hosts, tmp_path: Path) -> None:
    with served(echo(tmp_path), tmp_path) as replica:
        ranks = ranks_of(two.agents["b"])
        two.exchange.kill()
        asked = [ask(replica, n) for n in range(9)]
        until(lambda: not any(map(alive, ranks)))
        two.start_exchange()
        assert values(asked) == [[n] for n in range(9)]


@pytest.mark.usefixtures("two")
def test_a_load_waits_for_hosts_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = echo(tmp_path, 3, 3, start_timeout_seconds=1)
    missing = r"agents on 2 other hosts, and 1 are connected \(b\); it waited 1 s"
    with pytest.raises(LoadError, match=missing), served(config, tmp_path):
        pass
    monkeypatch.delenv(VARIABLE)
    again = "start it again, now that a model has `hosts`"
    with pytest.raises(LoadError, match=again), served(config, tmp_path):
        pass


def test_ranks_end_with_their_front(two: Hosts, tmp_path: Path) -> None:
    with served(echo(tmp_path), tmp_path):
        (rank,) = ranks_of(two.agents["b"])
    until(lambda: not alive(rank))


FRONT = """
import sys, time
from pathlib import Path
from tests.support.configs import echo_config
from tests.support.replicas import served

folder = Path(sys.argv[1])
config = echo_config(folder / "echo", pipeline_parallel_size=2, hosts=2)
with served(config, folder):
    print("serves", flush=True)
    time.sleep(1000)
"""


def test_ranks_end_with_a_front_that_is_killed(two: Hosts, tmp_path: Path) -> None:
    (tmp_path / "echo" / "1").mkdir(parents=True)
    with python(FRONT, tmp_path, says="serves"):
        (rank,) = ranks_of(two.agents["b"])
    until(lambda: not alive(rank))


@pytest.mark.parametrize(
    ("how", "patience"), [(signal.SIGKILL, LEASE), (signal.SIGSTOP, LEASE + 1)]
)
def test_an_agent_without_an_exchange_leaves_if_told_to(
    tmp_path: Path, how: signal.Signals, patience: float
) -> None:
    """After the lease if its host says that there is none; from beyond a cut link nothing comes, so
    it may be mended. Nothing of the agent stays."""
    with hosts(tmp_path) as made:
        told = LEASE + 1 if how is signal.SIGSTOP else 60
        agent = made.connected("b", "--leave-after-seconds", told)
        with served(echo(tmp_path), tmp_path):
            forkservers = children(agent.process.pid)
            made.exchange.signal(how)
            began = time.monotonic()
            agent.says(f"there is no exchange for {patience:g} s; it leaves")
            until(lambda: not any(map(alive, [agent.process.pid, *forkservers])))
            assert patience - 1.5 < time.monotonic() - began < patience + 2
            made.exchange.kill()  # One that is stopped would let the replica's end wait.


def test_other_hosts_prepare_themselves_while_this_one_does(two: Hosts, tmp_path: Path) -> None:
    """The first start imports the engine on all of them at the same time."""
    announce(echo(tmp_path).source)
    two.agents["b"].says("ready for ranks of echo")
    with served(decoder_config(tmp_path / "decoder", pipeline_parallel_size=2, hosts=2), tmp_path):
        ready = two.agents["b"].says("ready for ranks of decoder")
    assert ready


# Each stage adds the sum of its ranks' numbers, and so meets all of them.
MEETING = """
import torch
from torch import nn

class Stage(nn.Module):
    def __init__(self, shard):
        super().__init__()
        self.shard = shard

    def forward(self, batch, hidden):
        x = batch["X"] if hidden is None else hidden
        mine = torch.full_like(x, 10.0 ** (2 * self.shard.stage + self.shard.rank))
        y = x + self.shard.communicator.all_reduce(mine)
        return {"Y": y} if self.shard.is_last else y

build = Stage
"""


def test_ranks_of_several_hosts_meet(two: Hosts, tmp_path: Path) -> None:
    """Tensor parallel across, pipeline across, and both; each as on one host."""
    requests = [{"X": np.array([[n * 10_000.0]], np.float32)} for n in range(20)]
    for tp, pp, total in ((2, 1, 11), (1, 2, 101), (2, 2, 1111)):
        sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "hosts": 2}
        shutil.rmtree(tmp_path / "meeting", ignore_errors=True)
        config = module_config(tmp_path / "meeting", MEETING, (1,), **sizes)
        with served(config, tmp_path) as replica:
            answers = [f.result(LIMIT)["Y"].item() for f in replica.ask_all(requests)]
        assert answers == [n * 10_000 + total for n in range(20)]
        until(lambda: not ranks_of(two.agents["b"]))


def test_streams_go_on_when_a_host_of_theirs_dies(two: Hosts, tmp_path: Path) -> None:
    """A decoder in two stages; what it has in its blocks is lost with the host."""
    more = {"pipeline_parallel_size": 2, "hosts": 2, "module.step_milliseconds": 3}
    prompts = [[100 + n, 200, 300 + n] for n in range(10)]
    two.connected("c")
    with served(decoder_config(tmp_path / "decoder", **more), tmp_path) as replica:
        answers = [Parts() for _ in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            replica.stream(prompt, answer, max_tokens=150, ignore_eos=True)
        until(lambda: all(len(answer.ids) > 20 for answer in answers))
        next(agent for agent in two.agents.values() if ranks_of(agent)).kill()
        wanted = [expected(prompt, 150, eos=-1) for prompt in prompts]
        assert [answer.done.result(LIMIT) for answer in answers] == wanted
        assert counted(replica, "restarts_total") == [1]


@pytest.mark.campaign
def test_many_hosts_start_soon_and_wait_for_nothing_in_vain(tmp_path: Path) -> None:
    """8 agents with two ranks each; one that is killed is back, and what waits costs nothing."""
    names = "bcdefghi"
    with hosts(tmp_path, *names) as made:
        began = time.monotonic()
        with served(echo(tmp_path, 18, 9), tmp_path) as replica:
            started = time.monotonic() - began
            programs = [made.exchange, *made.agents.values()]
            before = [cpu_seconds(each.process.pid) for each in programs]
            began = time.monotonic()
            until(lambda: time.monotonic() > began + IDLE_SECONDS)
            used = [cpu_seconds(each.process.pid) for each in programs]
            shares = [(now - then) / IDLE_SECONDS for now, then in zip(used, before, strict=True)]
            made.agents["e"].kill()
            began = time.monotonic()
            made.agent("e")
            assert values([ask(replica, n) for n in range(9)]) == [[n] for n in range(9)]
            back = time.monotonic() - began
    print(f"started in {started:.1f} s, back in {back:.1f} s, idle {max(shares):.1%} of a core")
    assert started < 10 * NOISE
    assert back < 3 * NOISE
    assert max(shares) < 0.01 * NOISE


def test_what_a_killed_agent_has_left_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with hosts(tmp_path, "b", "c") as made:
        before = {*tmp_path.glob("python_mp-agent-*")}
        made.agents["b"].kill()
        assert {*tmp_path.glob("python_mp-agent-*")} == before, "else this tests nothing"
        made.connected("b")
        after = {*tmp_path.glob("python_mp-agent-*")}
        assert len(before) == len(after) == 2
        assert len(before & after) == 1
        for name in ("b", "c"):
            made.agents[name].signal(signal.SIGTERM)
        until(lambda: not [*tmp_path.glob("python_mp-agent-*")])
