"""The built-in encoder against sentence-transformers, in every layout."""

import os
import random
import shutil
import signal
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from build_scripts import checkpoint_tokenizer
from python_mp.model.config import ModelConfig
from python_mp.model.errors import InvalidInput
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding import source
from python_mp.sharding.shard import Shard
from tests.support.calls import closeness, reference
from tests.support.checkpoints import packaged
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.families import FAMILIES
from tests.support.replicas import Array, Served, counted, pids, served

LIMIT = 60.0
BOUND = {"float32": 0.999999, "bfloat16": 0.999, "float16": 0.99999}


@cache
def tokens() -> list[Array]:
    """Of the reference's texts, as embed_tokenizer makes them."""
    encoded = checkpoint_tokenizer.load(packaged()).encode_batch(reference().texts)
    return [np.array(each.ids, np.int32) for each in encoded]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (version := tmp_path_factory.mktemp("encoder") / "1").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(packaged().file(name), version)
    return version.parent


def config(folder: Path, width: int = 384, **more: Any) -> ModelConfig:
    """As model_repository/embed_encoder."""
    return model_config(
        folder,
        [tensor("INPUT_IDS", INT32, -1, allow_ragged_batch=True), tensor("LENGTHS", INT32, 1)],
        [tensor("HIDDEN_STATES", FP32, -1, width)],
        **{"engine": "torch", "lengths": "LENGTHS", **more},
    )


def request(*rows: Sequence[int] | Array) -> dict[str, Array]:
    """Sequences of one request, padded to the longest for the way only."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    return {"INPUT_IDS": ids, "LENGTHS": np.array([[len(row)] for row in rows], np.int32)}


def pooled(outputs: dict[str, Array], which: Sequence[int]) -> Array:
    """float64 [len(which), 384], as embed_vectors does it."""
    rows, hidden = [tokens()[n] for n in which], outputs["HIDDEN_STATES"]
    assert hidden.shape == (len(rows), max(map(len, rows)), 384)
    means = [h[: len(row)].mean(0, np.float64) for h, row in zip(hidden, rows, strict=True)]
    return np.stack([mean / np.linalg.norm(mean) for mean in means])


def embed(replica: Served, which: Sequence[int], *, killing: int = 0) -> Array:
    """All at once, a request each; meanwhile a process is killed."""
    futures = replica.ask_all([request(tokens()[n]) for n in which])
    if killing:
        os.kill(killing, signal.SIGKILL)
    answers = [pooled(f.result(LIMIT), [n]) for f, n in zip(futures, which, strict=True)]
    return np.concatenate(answers)


def check_accuracy(replica: Served, count: int, bound: float) -> None:
    which = random.Random(count).sample(range(200), count)
    together = embed(replica, which)
    assert reference().cosine(which, together) >= bound
    few = which[:6]
    alone = np.concatenate([embed(replica, [n]) for n in few])
    in_one = replica.ask(**request(*(tokens()[n] for n in few))).result(LIMIT)
    for answers in (alone, pooled(in_one, few)):
        assert closeness(answers, together[:6]) >= bound
    assert counted(replica, "restarts_total") == [0]


# Every pair of dtype, tp and pp that has code of its own: sums of a dtype, handing it to a stage.
@pytest.mark.parametrize(
    ("dtype", "tp", "pp"),
    [
        ("float32", 2, 1),
        ("float32", 1, 3),
        ("bfloat16", 2, 2),
        ("float16", 2, 2),
        pytest.param("bfloat16", 4, 1, marks=pytest.mark.campaign),
    ],
)
def test_layouts_agree_with_the_reference(
    folder: Path, tmp_path: Path, dtype: str, tp: int, pp: int
) -> None:
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    with served(config(folder, dtype=dtype, **sizes), tmp_path) as replica:
        check_accuracy(replica, 32, BOUND[dtype])


def test_a_rank_killed_while_it_computes_changes_no_answer(folder: Path, tmp_path: Path) -> None:
    """Over gloo; of shared memory see test_faults."""
    gloo = config(folder, tensor_parallel_size=2, collectives="gloo")
    with served(gloo, tmp_path) as replica:
        longest = sorted(range(200), key=lambda n: -len(tokens()[n]))[:16]
        answers = embed(replica, longest, killing=pids(replica)[1])
        assert reference().cosine(longest, answers) >= BOUND["float32"]
        assert counted(replica, "generation", "replays_total") == [2, 16]


def test_bad_input_is_refused_alone_and_costs_no_restart(folder: Path, tmp_path: Path) -> None:
    bad = {
        "INPUT_IDS holds 30522; ids are 0 to 30521": [5, 30522],
        "INPUT_IDS holds -1;": [5, -1],
        "513 tokens; the model's limit is 512": [5] * 513,
    }
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    with served(config(folder, **sizes), tmp_path) as replica:
        for sentence, ids in bad.items():
            wrong, right = replica.ask_all([request(ids), request(tokens()[0])])
            with pytest.raises(InvalidInput, match=sentence):
                wrong.result(LIMIT)
            answer = pooled(right.result(LIMIT), [0])
            assert reference().cosine([0], answer) >= BOUND["float32"]
        assert counted(replica, "restarts_total") == [0]


def held_bytes(folder: Path, rank: int, size: int, stage: int = 0, stages: int = 1) -> int:
    """Bytes of the tensors of one rank's module."""
    place, cpu = (rank, size, stage, stages), torch.device("cpu")
    shard = Shard(*place, torch.float32, cpu, folder / "1", {}, Alone())
    module = source.read(folder / "1").build(shard)
    return sum(
        value.nbytes
        for each in module.modules()
        for value in (*vars(each).values(), *each.parameters(False), *each.buffers(False))
        if isinstance(value, torch.Tensor)
    )


def test_a_rank_holds_its_share_of_the_weights(folder: Path) -> None:
    whole = held_bytes(folder, 0, 1)
    assert whole > 80e6
    for size in (2, 4):
        shares = [held_bytes(folder, rank, size) / whole for rank in range(size)]
        assert all(0.98 / size < share < 1.05 / size for share in shares)
    assert sum(held_bytes(folder, 0, 1, stage, 3) for stage in range(3)) == whole


def test_places_without_a_row_are_counted(tmp_path: Path) -> None:
    """Of a model that takes rectangles: 10 and 9 tokens lie side by side, 3 alone."""
    (version := tmp_path / "1").mkdir()
    FAMILIES["mpnet"].make().save_pretrained(version)
    with served(config(tmp_path, 48, tensor_parallel_size=2), tmp_path) as replica:
        replica.ask(**request([5] * 10, [6] * 3, [7] * 9)).result(LIMIT)
        assert counted(replica, "tokens_total") == [22]
        assert counted(replica, "tokens_padded_total") == [1]
