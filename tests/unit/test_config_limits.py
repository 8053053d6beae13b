"""What config.pbtxt may not ask for: too much, what Triton knows and we do not, what clashes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.model.config import ModelConfig
from python_mp.model.config_json import parse
from python_mp.model.errors import ConfigError
from python_mp.model.parameters import ENGINES, Parameters
from tests.support.configs import FP32, INT32, model_config, tensor

X = tensor("X", FP32, 4)
IDS = tensor("IDS", INT32, -1, allow_ragged_batch=True)
NUMBERS = [f.name for f in Parameters.__dataclass_fields__.values() if f.type == "int"]


def changed(**changes: Any) -> ModelConfig:
    """A good model with other values at the top of its config."""
    raw = json.loads(model_config(Path("m"), [X], [X], engine="torch").source[0])
    return parse(json.dumps(raw | changes), "m", "1")


@given(st.sampled_from(NUMBERS), st.one_of(st.integers(), st.text()))
def test_any_value_of_any_number_is_taken_within_bounds_or_refused(key: str, value: Any) -> None:
    said = ""
    try:
        config = model_config(Path("m"), [X], [X], passive=0, engine="torch", **{key: value})
        assert 0 <= getattr(config.parameters, key) <= 1 << 40
    except ConfigError as error:
        said = str(error)
    assert not said or re.match(f"parameter '{key}' is '.*at most", said, re.DOTALL)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_has_the_dtypes_that_it_computes_with(engine: Any) -> None:
    for dtype in set(ENGINES["echo"]) - set(ENGINES[engine]):
        with pytest.raises(ConfigError, match=f"'{engine}' has no dtype '{dtype}'; one of float32"):
            model_config(Path("m"), [X], [X], engine=engine, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input": [X | {"reshape": {"shape": []}}]}, "input 'X' has reshape.*into dims"),
        ({"input": [X | {"is_shape_tensor": True}]}, "is_shape_tensor, which is not"),
        ({"output": [X, X]}, "there are 2 outputs 'X'"),
        ({"input": [tensor("X", FP32, *[1] * 31)]}, "more than 30 dims"),
        ({"sequence_batching": {"max_sequence_idle_microseconds": 1}}, "without any state"),
        ({"batch_input": [{"kind": "BATCH_ELEMENT_COUNT"}]}, "batch_input, which is not"),
        ({"model_transaction_policy": {"decoupled": True}}, "is decoupled"),
        ({"optimization": {"execution_accelerators": {}}}, "execution_accelerators is not"),
    ],
)
def test_what_triton_allows_and_we_do_not_is_refused(changes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        changed(**changes)


def on(*kinds: str, gpus: tuple[int, ...] = (0,), **parameters: Any) -> ModelConfig:
    """The first group's instance leads the others' in one replica."""
    groups = [
        {"name": f"g{n}", "kind": kind, "count": 1, "gpus": list(gpus) if "GPU" in kind else []}
        | {"passive": n > 0}
        for n, kind in enumerate(kinds)
    ]
    parameters = {"engine": "torch", "tensor_parallel_size": len(kinds)} | parameters
    raw = json.loads(model_config(Path("m"), [X], [X], passive=0, **parameters).source[0])
    return parse(json.dumps(raw | {"instance_group": groups}), "m", "1")


@pytest.mark.parametrize(
    ("kinds", "more", "said"),
    [
        (["KIND_GPU"], {"engine": "onnxruntime"}, "'onnxruntime' computes on the CPU"),
        (["KIND_GPU"] * 2, {"collectives": "shm"}, "GPUs meet over"),
        (["KIND_CPU"] * 2, {"collectives": "nccl"}, "is for KIND_GPU"),
        (
            ["KIND_GPU"] * 2,
            {"collectives": "gloo", "tensor_parallel_size": 1, "pipeline_parallel_size": 2},
            "between stages",
        ),
        # Triton names all that it sees; where it sees none, somebody must say what is meant.
        (["KIND_GPU"], {"gpus": ()}, "instance group 'g0' is KIND_GPU, names no GPU"),
        (["KIND_CPU"] * 9, {"pipeline_parallel_size": 8}, "is 72 ranks; a replica has at most 64"),
    ],
)
def test_what_engine_or_collectives_cannot_use(kinds: list[str], more: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        on(*kinds, **more)


def test_inputs_do_not_take_the_names_of_what_we_add() -> None:
    for engine, name in (("torch", "cu_seqlens"), ("aot_inductor", "positions")):
        with pytest.raises(ConfigError, match=f"input '{name}' has the name of a tensor"):
            model_config(Path("m"), [IDS, tensor(name, INT32, 1)], [X], engine=engine)


def test_without_placement_there_are_no_other_hosts() -> None:
    sizes = {"engine": "torch", "pipeline_parallel_size": 2, "placement": "none"}
    with pytest.raises(ConfigError, match="placement 'none' lets no other host in"):
        model_config(Path("m"), [X], [X], **sizes, hosts=2)
    assert model_config(Path("m"), [X], [X], **sizes).parameters.hosts == 1
