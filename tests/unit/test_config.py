"""config.pbtxt: what is read, what is refused, and what the refusal names."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from python_mp.config import ModelConfig, Parameters, parse
from python_mp.errors import ConfigError
from tests.support.harness import FP32, INT32, model_config, tensor

IDS = tensor("IDS", INT32, -1, allow_ragged_batch=True)
HIDDEN = tensor("HIDDEN", FP32, -1, 8)


def ids_config(**parameters: Any) -> ModelConfig:
    inputs = [IDS, tensor("LENGTHS", INT32, 1), tensor("WIDE", FP32, 1), tensor("PAIR", INT32, 2)]
    given = {"engine": "echo"} | parameters
    return model_config(Path("models/m"), inputs, [HIDDEN], passive=0, **given)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("engine", "torch"),
        ("tensor_parallel_size", 2),
        ("pipeline_parallel_size", 3),
        ("dtype", "bfloat16"),
        ("collectives", "gloo"),
        ("lengths", "LENGTHS"),
        ("max_batch_tokens", 7),
        ("max_batch_bytes", 1024),
        ("max_queue_requests", 1),
        ("max_queue_bytes", 2048),
        ("hang_seconds", 3),
        ("forward_timeout_seconds", 60),
        ("threads_per_rank", 2),
        ("start_timeout_seconds", 9),
    ],
)
def test_every_parameter_is_read(key: str, value: int | str) -> None:
    assert getattr(ids_config(**{key: value}).parameters, key) == value
    assert getattr(Parameters("echo"), key) != value


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (None, math.inf),
        ({}, math.inf),
        ({"default_timeout_microseconds": "250000"}, 0.25),
        ({"default_timeout_microseconds": 0}, math.inf),
        ({"default_timeout_microseconds": 5, "timeout_action": "DELAY"}, math.inf),
    ],
)
def test_the_queue_policy_says_how_long_to_wait(policy: Any, seconds: float) -> None:
    raw = json.loads(ids_config().source[0])
    if policy is not None:
        raw["dynamic_batching"] = {"default_queue_policy": policy}
    assert parse(json.dumps(raw), "models/m", "1").queue_seconds == seconds


def test_the_test_above_knows_every_parameter() -> None:
    (marker,) = test_every_parameter_is_read.pytestmark  # type: ignore[attr-defined]
    assert {key for key, _ in marker.args[1]} == {field.name for field in fields(Parameters)}


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("engine", "tensorflow", "torch"),
        ("dtype", "int4", "bfloat16"),
        ("collectives", "mpi", "gloo"),
        ("tensor_parallel_size", "0", "at least 1"),
        ("tensor_parallel_size", "two", "at least 1"),
        ("pipeline_parallel_size", "-1", "at least 1"),
        ("pipeline_parallel_size", "1.5", "at least 1"),
        ("max_batch_tokens", "", "at least 1"),
        ("max_batch_bytes", "1023", "at least 1024"),
        ("max_queue_requests", "0", "at least 1"),
        ("threads_per_rank", " 1", "at least 1"),
        ("start_timeout_seconds", "0", "at least 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' is '{re.escape(value)}'.*{allowed}"):
        ids_config(**{key: value})


def test_a_misspelt_key_gets_a_suggestion() -> None:
    with pytest.raises(
        ConfigError, match=r"'tensor_paralel_size'; did you mean 'tensor_parallel_size'"
    ):
        ids_config(tensor_paralel_size=2)


def test_an_unknown_key_gets_the_list() -> None:
    with pytest.raises(ConfigError, match=r"'zzz'; known: engine, tensor_parallel_size"):
        ids_config(zzz=1)


def test_what_was_built_says_engine_and_dtype() -> None:
    text, built = ids_config(engine="torch").source[0], ("torch", "bfloat16")
    config = parse(text, "models/m", "1", *built)
    assert (config.parameters.engine, config.parameters.dtype) == built
    assert parse(*config.source) == config
    with pytest.raises(ConfigError, match="built with engine onnxruntime, but config.pbtxt says"):
        parse(text, "models/m", "1", "onnxruntime", "int8")


def test_a_version_made_by_hand_must_say_its_engine() -> None:
    with pytest.raises(ConfigError, match="'engine' is missing, which .*; one of echo"):
        model_config(Path("m"), [IDS], [HIDDEN])


def test_lengths_must_name_an_int32_input_of_one_element() -> None:
    assert ids_config(lengths="LENGTHS").parameters.lengths == "LENGTHS"
    for name in ("LENGHTS", "IDS", "WIDE", "PAIR"):
        with pytest.raises(ConfigError, match=f"'lengths' names '{name}'"):
            ids_config(lengths=name)


def test_lengths_without_a_ragged_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs an input with allow_ragged_batch"):
        model_config(Path("m"), [tensor("LENGTHS", INT32, 1)], [], engine="echo", lengths="LENGTHS")


@pytest.mark.parametrize("dtype", ["TYPE_STRING", "TYPE_BF16", "TYPE_UINT64"])
def test_a_dtype_that_is_not_carried_is_refused(dtype: str) -> None:
    for inputs, outputs in (([tensor("T", dtype, 1)], [HIDDEN]), ([IDS], [tensor("T", dtype, 1)])):
        with pytest.raises(
            ConfigError, match=f"tensor 'T' is {dtype}; python_mp carries TYPE_BOOL"
        ):
            model_config(Path("m"), inputs, outputs, engine="echo")


def test_a_model_that_does_not_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_batch_size must be at least 1"):
        model_config(Path("m"), [IDS], [HIDDEN], max_batch_size=0, engine="echo")


def test_a_ragged_input_needs_a_free_first_dim() -> None:
    ragged = tensor("IDS", INT32, 4, allow_ragged_batch=True)
    with pytest.raises(ConfigError, match="'IDS' has allow_ragged_batch"):
        model_config(Path("m"), [ragged], [HIDDEN], engine="echo")


def test_an_output_is_ragged_only_beside_a_ragged_input() -> None:
    outputs = [HIDDEN, tensor("SCORE", FP32, 1)]
    with_ragged = model_config(Path("m"), [IDS], outputs, engine="echo")
    without = model_config(Path("m"), [tensor("IDS", INT32, -1)], outputs, engine="echo")
    assert [spec.ragged for spec in with_ragged.outputs] == [True, False]
    assert [spec.ragged for spec in without.outputs] == [False, False]
    assert (with_ragged.has_ragged_input, without.has_ragged_input) == (True, False)


def test_tensors_and_folder() -> None:
    config = model_config(
        Path("models/m"), [IDS, tensor("MASK", "TYPE_BOOL", 2, 3, optional=True)], [HIDDEN],
        engine="echo", tensor_parallel_size=2, pipeline_parallel_size=3,
    )  # fmt: skip
    ids, mask = config.inputs
    assert (ids.name, ids.dtype, ids.dims, ids.ragged, ids.optional) == (
        "IDS", "int32", (-1,), True, False,
    )  # fmt: skip
    assert (mask.dtype, mask.dims, mask.ragged, mask.optional) == ("bool", (2, 3), False, True)
    assert (config.name, config.version, config.folder) == ("m", 1, Path("models/m/1"))
    assert config.world_size == 6


def test_module_parameters_are_handed_over_as_they_are() -> None:
    config = ids_config(**{"module.hidden": "12", "module.activation": "gelu"})
    assert config.module_parameters == {"hidden": "12", "activation": "gelu"}


def test_its_source_makes_it_again() -> None:
    config = ids_config(lengths="LENGTHS", tensor_parallel_size=2, **{"module.a": "b"})
    assert parse(*config.source) == config
