"""A stage on a GPU, by a stand-in whose copies and kernels are late, with poisoned memory."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from python_mp.model.batch import CU_SEQLENS
from python_mp.model.errors import InvalidInput
from python_mp.rank import stage as stages
from python_mp.rank.buckets import Buckets
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.device import CPU
from python_mp.rank.engines import torch as engine
from python_mp.rank.stage import Stage
from python_mp.sharding.families.transformers import Encoder
from python_mp.sharding.packed import Packed
from python_mp.sharding.sequences import NotStaticError, StaticSequences
from python_mp.sharding.shard import Shard
from python_mp.sharding.weights import Tensors
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.families import FAMILIES
from tests.support.late_cuda import LateCuda, LateDevice
from tests.support.replicas import Array, lone_rank

MODULE = """
import torch
from torch import nn
from python_mp.sharding.pooling import pool

def build(shard):
    return Sums()

def check(batch):
    batch.refuse(batch["IDS"] < 0, "an id is negative")
    batch.refuse(batch.positions >= 130, "a sequence is too long")

class Sums(nn.Module):
    calls, places = 0, torch.arange(130)
    def forward(self, batch, hidden):
        scaled = batch["IDS"] * batch["SCALE"][0]
        rows = torch.stack([scaled, self.places[batch.positions]], 1).float()
        self.calls += 1
        {more}
        return {{
            "ROWS": rows, "SUMS": pool(rows, batch.cu_seqlens, ["mean", "max", "lasttoken"]),
            "SCALED": batch["SCALE"] * 2,
        }}
"""
KINDS = {
    "": True,
    "rows = rows + len(batch.lengths) * 0": False,  # What the host must know.
    "rows = rows * self.calls": False,  # Of each call something else.
}
"""What the module does besides, and whether a graph can do it."""


@pytest.fixture
def load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, LateCuda | None], Stage]:
    (tmp_path / "1").mkdir()
    config = model_config(
        tmp_path,
        [tensor("IDS", INT32, -1, allow_ragged_batch=True), tensor("SCALE", FP32, 1)],
        [tensor("ROWS", FP32, -1, 2), tensor("SUMS", FP32, 6), tensor("SCALED", FP32, 1)],
        engine="torch",
        max_batch_tokens=400,
    )

    def loaded(more: str, cuda: LateCuda | None) -> Stage:
        (tmp_path / "1" / "module.py").write_text(MODULE.format(more=more))
        if cuda:
            device = LateDevice(cuda, depth=2)
            monkeypatch.setattr(stages, "of_index", lambda *_, **__: device)
        return engine.load(lone_rank(config))

    return loaded


def batches(seed: int, count: int) -> Iterator[dict[str, Array]]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        lengths = random.integers(1, 131, random.integers(1, 4))
        yield {
            CU_SEQLENS: np.cumsum([0, *lengths]).astype(np.int32),
            "IDS": random.integers(0, 1000, lengths.sum()).astype(np.int32),
            "SCALE": np.repeat(random.normal(size=(1, 1)), len(lengths), 0).astype(np.float32),
        }


@pytest.mark.parametrize("more", KINDS)
def test_what_a_stage_computes_late_is_what_a_processor_computes(
    load: Callable[[str, LateCuda | None], Stage], more: str
) -> None:
    plain, cuda = load("", None), LateCuda(5)
    stage, random = load(more, cuda), Random(5)
    flying: deque[tuple[dict[str, Array], Callable[[], dict[str, Array]]]] = deque()

    def land() -> None:
        inputs, landing = flying.popleft()
        for name, wanted in plain.forward(inputs).items():
            found = landing()[name]
            if "calls" not in more or name == "SCALED":
                np.testing.assert_allclose(found, wanted, rtol=1e-5)

    for inputs in batches(5, 120):
        given = {name: array.copy() for name, array in inputs.items()}
        flying.append((inputs, stage.begin(given)))
        if random.random() < 0.5:
            while flying:
                land()
            stage.improve()
        elif len(flying) == stage.depth:
            land()
    while flying:
        land()
    assert (cuda.replayed > 40) == KINDS[more]
    while stage.improve():
        pass
    assert not stage.improve()


def test_a_refused_batch_never_reaches_the_gpu(
    load: Callable[[str, LateCuda | None], Stage],
) -> None:
    stage = load("", LateCuda(1))
    first, second = batches(1, 2)
    landing = stage.begin(first)
    second["IDS"][-1] = -1
    with pytest.raises(InvalidInput, match="negative") as refused:
        stage.begin(second)
    assert refused.value.sequences == (len(second[CU_SEQLENS]) - 2,)
    assert stage.is_apart()
    assert landing()["SUMS"].shape == (len(first[CU_SEQLENS]) - 1, 6)


@pytest.mark.parametrize("most", [1, 16, 100, 300, 4096, 20_000])
def test_a_bucket_holds_what_it_is_chosen_for(most: int) -> None:
    buckets, random = Buckets(most), Random(most)
    known = set(buckets)
    for _ in range(500):
        rows = random.randint(1, most)
        sequences = random.randint(1, max(1, rows // 20))
        longest = random.randint(-(-rows // sequences), rows)
        bucket = buckets.of(rows, sequences, longest)
        assert bucket in known
        assert bucket.rows >= rows
        assert bucket.sequences >= sequences
        assert bucket.longest >= longest
        assert rows < 1024 or bucket.rows <= rows * 1.25 + 1
    assert buckets.of(most + 1, 1, 1) is None


class Waits(TorchDispatchMode):
    """Raises where a GPU would be waited for: the host asks it for a number, or for how many."""

    ASK = (
        *("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "_unique2"),
        "repeat_interleave.Tensor",
    )

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(op).removeprefix("aten.").removesuffix(".default") in self.ASK:
            raise RuntimeError(f"{op} waits for the GPU")
        return op(*args, **(kwargs or {}))


IN_RECTANGLES = {"mpnet", "deberta_v2"}
"""These are made of lengths."""


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if not f.takes_images])
def test_families_do_not_ask_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention that needs no lengths; on a batch that is filled up."""
    family = FAMILIES[name]
    model = family.make()
    given = Tensors(model.state_dict(), torch.float32)
    shard = Shard(0, 1, 0, 1, torch.float32, CPU, Path(), {}, Alone(), given)
    encoder = Encoder(shard, type(model.config).from_dict(model.config.to_dict()))
    monkeypatch.setattr(StaticSequences, "attend", lambda _, q, *__, **___: q.flatten(1))
    ids, cu = torch.arange(40, dtype=torch.int32) % 90, torch.tensor([0, 7, 30, 30]).int()
    batch = Packed.placed(
        {"INPUT_IDS": ids, CU_SEQLENS: cu}, {CU_SEQLENS: StaticSequences(cu, 40, 30)}
    )
    with torch.inference_mode(), Waits(), ExitStack() as refused:
        if name in IN_RECTANGLES:
            refused.enter_context(pytest.raises(NotStaticError, match="lengths"))
        encoder(batch, None)
