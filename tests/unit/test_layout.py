"""From instance groups to ranks."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.model.config import InstanceGroup, ModelConfig
from python_mp.model.errors import ConfigError
from python_mp.model.layout import CPU, Instance, including, replicas
from tests.support.configs import FP32, model_config, tensor

SIZES = st.integers(1, 4)
X = tensor("X", FP32, 1)


def sized(tp: int, pp: int, *groups: InstanceGroup, hosts: int = 1) -> ModelConfig:
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "hosts": hosts}
    config = model_config(Path("m"), [X], [X], engine="echo", **sizes)
    return replace(config, instance_groups=groups)


def cpu(name: str, count: int, passive: bool = False) -> InstanceGroup:
    return InstanceGroup(name, "KIND_CPU", count, (), passive)


def gpu(name: str, count: int, *gpus: int, passive: bool = False) -> InstanceGroup:
    return InstanceGroup(name, "KIND_GPU", count, gpus, passive)


@st.composite
def fitting(draw: st.DrawFn) -> ModelConfig:
    """Active and passive instances of the right numbers, cut into groups at random."""
    tp, pp, copies = draw(SIZES), draw(SIZES), draw(SIZES)
    hosts = draw(st.sampled_from([n for n in range(1, tp * pp + 1) if fits(tp, pp, n)]))
    groups: list[InstanceGroup] = []
    for passive, total in ((False, copies), (True, copies * (tp * pp // hosts - 1))):
        while total:
            count = draw(st.integers(1, total))
            groups.append(cpu(f"g{len(groups)}", count, passive))
            total -= count
    return sized(tp, pp, *draw(st.permutations(groups)), hosts=hosts)


def fits(tp: int, pp: int, hosts: int) -> bool:
    """Hosts have whole stages, or stages have whole hosts."""
    return pp % hosts == 0 or (hosts % pp == 0 and tp % (hosts // pp) == 0)


@given(SIZES, SIZES, st.integers(1, 20))
def test_hosts_have_equal_parts_or_are_refused(tp: int, pp: int, hosts: int) -> None:
    with suppress(ConfigError):
        sized(tp, pp, hosts=hosts)
        assert fits(tp, pp, hosts)
        return
    assert not fits(tp, pp, hosts)


@given(fitting())
def test_every_instance_holds_one_rank_in_blocks(config: ModelConfig) -> None:
    laid = replicas(config)
    tp, pp = config.parameters.tensor_parallel_size, config.parameters.pipeline_parallel_size
    for replica in laid:
        for index, each in enumerate(replica.ranks):
            assert each.rank == index == each.stage * tp + each.tensor_rank
            assert each.tensor_rank < tp
            twin = replica.here[index % config.ranks_per_host]
            assert (each.host, each.instance) == (index // len(replica.here), twin.instance)
        assert len(replica.ranks) == tp * pp == len(replica.here) * config.parameters.hosts
    names: dict[bool, list[str]] = {False: [], True: []}
    for group in config.instance_groups:
        names[group.passive] += [f"{group.name}_{index}" for index in range(group.count)]
    active, passive = names.values()
    held = [placement.instance for replica in laid for placement in replica.here]
    assert Counter(held) == Counter(Instance(name, CPU) for name in (*active, *passive))
    assert [replica.index for replica in laid] == list(range(len(laid)))
    assert [replica.leader.name for replica in laid] == active
    assert [each.name for replica in laid for each in replica.passive] == passive


@given(SIZES, SIZES, st.integers(1, 4), st.integers(0, 4))
def test_a_replica_added_later_has_its_place(tp: int, pp: int, count: int, index: int) -> None:
    shards = tp * pp - 1

    def of(replicas: int) -> ModelConfig:
        groups = [cpu("lead", replicas), cpu("shard", replicas * shards, passive=True)]
        return sized(tp, pp, *groups[: 2 if shards else 1])

    now = including(of(count), Instance(f"lead_{index}", CPU))
    assert replicas(now) == replicas(of(max(count, index + 1)))
    assert including(now, Instance("shard_0", CPU)) is now
    with pytest.raises(ConfigError, match="started anew"):
        including(sized(1, 1, cpu("lead", 1), cpu("more", 1)), Instance("lead_1", CPU))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([gpu("lead", 1, 0), cpu("shard", 1, passive=True)], "on GPUs and on the CPU"),
        ([gpu("lead", 1, 0), gpu("shard", 1, 0, passive=True)], "two ranks on one GPU"),
        ([cpu("lead", 1)], "2 x .* 1 = 2.*need 1 passive.*has 1 active and 0 passive"),
        ([cpu("lead", 1), cpu("shard", 2, passive=True)], "has 1 active and 2 passive"),
        ([cpu("shard", 1, passive=True)], "has 0 active and 1 passive"),
    ],
)
def test_groups_that_make_no_replica_are_refused(groups: list[InstanceGroup], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replicas(sized(2, 1, *groups))


def test_instances_on_gpus() -> None:
    (replica,) = replicas(sized(2, 2, gpu("lead", 1, 0), gpu("shard", 1, 1, 2, 3, passive=True)))
    assert replica.ranks[0].instance == Instance("lead_0", 0)
    assert replica.passive == tuple(Instance("shard_0", device) for device in (1, 2, 3))
    config = sized(2, 1, gpu("lead", 1, 0, 2), gpu("shard", 1, 1, 3, passive=True))
    devices = [[each.instance.device for each in replica.ranks] for replica in replicas(config)]
    assert devices == [[0, 1], [2, 3]]
    grown = replicas(including(config, Instance("lead_1", 2)))
    assert grown[:2] == replicas(config)
    assert (grown[3].leader, grown[3].passive) == (Instance("lead_1", 2), (Instance("shard_1", 3),))
