"""Tensor, pipeline and data parallelism behind one Triton: right answers, ranks in their place."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.process.launch import TritonServer
from tests.support import repository
from tests.support.calls import BOUND, Client, in_parallel, reference, settled
from tests.support.processes import children, rank_processes
from tests.support.repository import Layout
from tests.support.serving import Serve

PINNED = Layout(2, 1, replicas=2, policies=("first", "last"))
LAYOUTS = [Layout(2, 2), Layout(1, 3, dtype="bfloat16"), PINNED]
CORES = sorted(os.sched_getaffinity(0))
POLICIES = {"first": CORES[0], "last": CORES[-1]}


@pytest.fixture(scope="module")
def layouts(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """All of them at once."""
    models = tmp_path_factory.mktemp("layouts") / "repository"
    repository.copy(models, "embed_tokenizer", "embed_vectors")
    for layout in LAYOUTS:
        repository.add_variant(models, layout)
    options = [f"--host-policy={name},cpu-cores={core}-{core}" for name, core in POLICIES.items()]
    with serve(models, options=options) as server:
        yield server


def ranks_by_model(server: TritonServer) -> dict[str, dict[tuple[int, int], int]]:
    """Model name to (replica, rank) to pid, over all stubs."""
    found: dict[str, dict[tuple[int, int], int]] = {}
    for stub in children(server.pid):
        for place, pid in rank_processes(stub).items():
            found.setdefault(model_of(stub), {})[place] = pid
    return found


def model_of(stub: int) -> str:
    command = Path(f"/proc/{stub}/cmdline").read_text()
    return next(each.name for each in LAYOUTS if f"/{each.name}_encoder/" in command)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_answers_as_the_reference(layouts: TritonServer, layout: Layout) -> None:
    def embed(number: int) -> None:
        with Client(layouts.endpoints, ("grpc", "http")[number % 2]) as client:
            for which in (range(number, number + 1), range(number, 200, 20)):
                vectors = client.embed([reference().texts[n] for n in which], layout.name)
                assert reference().cosine(which, vectors) >= BOUND[layout.dtype]

    in_parallel(4, embed)


def test_every_rank_is_a_process_of_its_replica(layouts: TritonServer) -> None:
    ranks = ranks_by_model(layouts)
    for layout in LAYOUTS:
        places = {(r, n) for r in range(layout.replicas) for n in range(layout.world_size)}
        assert ranks[layout.name].keys() == places


def test_both_replicas_work(layouts: TritonServer) -> None:
    def embed(number: int) -> None:
        with Client(layouts.endpoints) as client:
            for _ in range(5):
                client.embed([reference().texts[number]], PINNED.name)

    in_parallel(4, embed)
    for replica in ("0", "1"):
        wanted = {"model": f"{PINNED.name}_encoder", "replica": replica}
        settled(layouts.endpoints, lambda now, w=wanted: now.total("requests_total", **w) > 0)


def test_a_host_policy_pins_its_ranks(layouts: TritonServer) -> None:
    for (_, rank), pid in ranks_by_model(layouts)[PINNED.name].items():
        core = POLICIES["first" if rank == 0 else "last"]
        for thread in Path(f"/proc/{pid}/task").iterdir():
            status = (thread / "status").read_text()
            assert f"Cpus_allowed_list:\t{core}\n" in status
