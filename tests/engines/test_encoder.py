"""The built-in encoder against sentence-transformers, in every layout."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from python_mp.model.errors import InvalidInput
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding import source
from python_mp.sharding.shard import Shard
from tests.engines.conftest import Texts, encoder_config
from tests.support.replicas import Array, Served, counted, pids, served

LIMIT = 60.0
BOUND = {"float32": 0.999999, "bfloat16": 0.999, "float16": 0.99999}


def one_request(*rows: Array) -> dict[str, Array]:
    """Sequences of one request, padded to the longest for the way only."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    return {"INPUT_IDS": ids, "LENGTHS": np.array([[len(row)] for row in rows], np.int32)}


def pooled(outputs: dict[str, Array], *rows: Array) -> Array:
    """float64 [sequences, 384], as embed_pooler does it."""
    hidden = outputs["HIDDEN_STATES"]
    assert hidden.shape == (len(rows), max(map(len, rows)), 384)
    means = [h[: len(row)].mean(0, np.float64) for h, row in zip(hidden, rows, strict=True)]
    return np.stack([mean / np.linalg.norm(mean) for mean in means])


def embed(replica: Served, rows: Sequence[Array]) -> Array:
    """All at once, a request each."""
    futures = replica.ask_all([one_request(row) for row in rows])
    answers = [pooled(f.result(LIMIT), row) for f, row in zip(futures, rows, strict=True)]
    return np.concatenate(answers)


def closeness(a: Array, b: Array) -> float:
    """The smallest cosine between the rows, all of length one."""
    return float((a * b).sum(1).min())


def check_accuracy(replica: Served, texts: Texts, count: int, bound: float) -> None:
    order = random.Random(count).sample(range(len(texts.ids)), count)
    rows, reference = [texts.ids[n] for n in order], texts.embeddings[order].astype(np.float64)
    together = embed(replica, rows)
    assert closeness(together, reference) >= bound

    few = random.Random(1).sample(range(count), 6)
    alone = np.concatenate([embed(replica, [rows[n]]) for n in few])
    assert closeness(alone, reference[few]) >= bound
    assert closeness(alone, together[few]) >= bound

    mine = [rows[n] for n in few]
    (future,) = replica.ask_all([one_request(*mine)])
    assert closeness(pooled(future.result(LIMIT), *mine), reference[few]) >= bound
    assert counted(replica, "restarts_total") == [0]


# Every pair of dtype, tp and pp that has code of its own: sums of a dtype, handing it to a stage.
@pytest.mark.parametrize(
    ("dtype", "tp", "pp", "count"),
    [
        ("float32", 2, 1, 200),
        ("float32", 1, 3, 24),
        ("bfloat16", 4, 1, 24),
        ("bfloat16", 1, 2, 24),
        ("float16", 2, 2, 24),
    ],
)
def test_layouts_agree_with_the_reference(
    encoder_folder: Path, tmp_path: Path, texts: Texts, dtype: str, tp: int, pp: int, count: int
) -> None:
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    with served(encoder_config(encoder_folder, dtype=dtype, **sizes), tmp_path) as replica:
        check_accuracy(replica, texts, count, BOUND[dtype])


def test_two_replicas_agree_with_the_reference(
    encoder_folder: Path, tmp_path: Path, texts: Texts
) -> None:
    config = encoder_config(encoder_folder, replicas=2)
    with served(config, tmp_path) as first, served(config, tmp_path, index=1) as second:
        for replica in (first, second):
            check_accuracy(replica, texts, 12, BOUND["float32"])


def test_a_rank_killed_while_it_computes_changes_no_answer(
    encoder_folder: Path, tmp_path: Path, texts: Texts
) -> None:
    """Over gloo; of shared memory see test_faults."""
    config = encoder_config(encoder_folder, tensor_parallel_size=2, collectives="gloo")
    with served(config, tmp_path) as replica:
        longest = sorted(range(200), key=lambda n: -len(texts.ids[n]))[:16]
        rows, victim = [texts.ids[n] for n in longest], pids(replica)[1]
        futures = replica.ask_all([one_request(row) for row in rows])
        os.kill(victim, signal.SIGKILL)
        answers = [pooled(f.result(LIMIT), row) for f, row in zip(futures, rows, strict=True)]
        assert closeness(np.concatenate(answers), texts.embeddings[longest]) >= BOUND["float32"]
        assert counted(replica, "generation", "replays_total") == [2, 16]


def test_bad_input_is_refused_alone_and_costs_no_restart(
    encoder_folder: Path, tmp_path: Path, texts: Texts
) -> None:
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    good = texts.ids[0]
    bad = {
        "INPUT_IDS holds 30522; ids are 0 to 30521": [5, 30522],
        "INPUT_IDS holds -1;": [5, -1],
        "INPUT_IDS holds 2147483647;": [2147483647],
        "513 tokens; the model's limit is 512": [5] * 513,
    }
    with served(encoder_config(encoder_folder, **sizes), tmp_path) as replica:
        for sentence, ids in bad.items():
            wrong, right = replica.ask_all(
                [one_request(np.array(ids, np.int32)), one_request(good)]
            )
            with pytest.raises(InvalidInput, match=sentence):
                wrong.result(LIMIT)
            answer = pooled(right.result(LIMIT), good)
            assert closeness(answer, texts.embeddings[:1]) >= BOUND["float32"]
        assert counted(replica, "restarts_total") == [0]


def held_bytes(folder: Path, rank: int, size: int, stage: int = 0, stages: int = 1) -> int:
    """Bytes of the tensors of one rank's module."""
    cpu, alone = torch.device("cpu"), Alone()
    place = (rank, size, stage, stages)
    module = source.read(folder / "1").build(
        Shard(*place, torch.float32, cpu, folder / "1", {}, alone)
    )
    return sum(
        value.nbytes
        for each in module.modules()
        for value in (*vars(each).values(), *each.parameters(False), *each.buffers(False))
        if isinstance(value, torch.Tensor)
    )


def test_a_rank_holds_its_share_of_the_weights(encoder_folder: Path) -> None:
    whole = held_bytes(encoder_folder, 0, 1)
    assert whole > 80e6
    for size in (2, 4):
        shares = [held_bytes(encoder_folder, rank, size) / whole for rank in range(size)]
        assert all(0.98 / size < share < 1.05 / size for share in shares)
    stages = [held_bytes(encoder_folder, 0, 1, stage, 3) for stage in range(3)]
    assert sum(stages) == whole
