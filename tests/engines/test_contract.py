"""What every engine must do; a new engine adds a line to ENGINES."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from python_mp.batch import CU_SEQLENS
from python_mp.config import ModelConfig
from python_mp.errors import InvalidInput
from python_mp.rank import engines
from python_mp.rank.engines import Engine
from python_mp.rank.engines.echo import REFUSE
from tests.harness import FP32, INT32, Array, lone_rank, model_config, tensor

ENGINES = ["echo", "torch"]

MODULE = """
from python_mp.errors import InvalidInput
from torch import nn

def build(shard):
    return Identity()

def check(batch):
    if batch["FAULT"].any():
        raise InvalidInput("refused as asked")

class Identity(nn.Module):
    def forward(self, batch, hidden):
        return {"Y": batch["X"], "Z": batch["A"]}
"""


@pytest.fixture(params=ENGINES)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ModelConfig:
    """X -> Y ragged, A -> Z not; FAULT asks for a refusal."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "module.py").write_text(MODULE)
    x = tensor("X", INT32, -1, allow_ragged_batch=True)
    return model_config(
        tmp_path,
        [x, tensor("A", FP32, 2), tensor("FAULT", INT32, 3)],
        [tensor("Y", INT32, -1), tensor("Z", FP32, 2)],
        engine=request.param,
    )


@pytest.fixture
def engine(config: ModelConfig) -> Iterator[Engine]:
    engine = engines.load(lone_rank(config))
    yield engine
    engine.close()


def packed(lengths: Sequence[int], fault: int = 0) -> dict[str, Array]:
    rows, tokens = len(lengths), sum(lengths)
    return {
        CU_SEQLENS: np.cumsum([0, *lengths]).astype(np.int32),
        "X": np.arange(tokens, dtype=np.int32),
        "A": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2),
        "FAULT": np.array([[fault, 0, 0]] * rows, np.int32),
    }


def test_forward_returns_the_outputs_of_config_pbtxt(engine: Engine) -> None:
    for lengths in ([3], [1, 5, 2], [1], [4, 4]):
        inputs = packed(lengths)
        outputs = engine.forward(inputs)
        assert outputs.keys() == {"Y", "Z"}
        assert [outputs[name].dtype.name for name in "YZ"] == ["int32", "float32"]
        assert np.array_equal(outputs["Y"], inputs["X"])
        assert np.array_equal(outputs["Z"], inputs["A"])


def test_inputs_are_left_as_they_were(engine: Engine) -> None:
    inputs = packed([2, 3])
    engine.forward(inputs)
    for name, array in packed([2, 3]).items():
        assert np.array_equal(inputs[name], array)


def test_an_engine_that_refused_still_serves(engine: Engine) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput, match="refused as asked"):
            engine.forward(packed([2, 1], fault=REFUSE))
        assert np.array_equal(engine.forward(packed([2]))["Y"], [0, 1])


def test_the_time_waited_never_falls(engine: Engine) -> None:
    before = engine.waited_ns()
    engine.forward(packed([2]))
    assert 0 <= before <= engine.waited_ns()
    assert isinstance(before, int)
