"""config.pbtxt: what is read, what is refused, and what the refusal names."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from python_mp.model.config import ModelConfig, Parameters
from python_mp.model.config_json import parse
from python_mp.model.errors import ConfigError
from tests.support.configs import FP32, INT32, model_config, tensor

IDS = tensor("IDS", INT32, -1, allow_ragged_batch=True)
HIDDEN = tensor("HIDDEN", FP32, -1, 8)


def ids_config(**parameters: Any) -> ModelConfig:
    inputs = [IDS, tensor("LENGTHS", INT32, 1), tensor("WIDE", FP32, 1), tensor("PAIR", INT32, 2)]
    given = {"engine": "echo"} | parameters
    return model_config(Path("models/m"), inputs, [HIDDEN], passive=0, **given)


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        ({}, math.inf),
        ({"default_timeout_microseconds": "250000"}, 0.25),
        ({"default_timeout_microseconds": 5, "timeout_action": "DELAY"}, math.inf),
    ],
)
def test_the_queue_policy_says_how_long_to_wait(policy: Any, seconds: float) -> None:
    raw = json.loads(ids_config().source[0])
    raw["dynamic_batching"] = {"default_queue_policy": policy}
    assert parse(json.dumps(raw), "models/m", "1").queue_seconds == seconds


def test_an_output_is_ragged_only_beside_a_ragged_input() -> None:
    outputs = [HIDDEN, tensor("SCORE", FP32, 1)]
    with_ragged = model_config(Path("m"), [IDS], outputs, engine="echo")
    without = model_config(Path("m"), [tensor("IDS", INT32, -1)], outputs, engine="echo")
    assert [spec.ragged for spec in with_ragged.outputs] == [True, False]
    assert [spec.ragged for spec in without.outputs] == [False, False]
    assert (with_ragged.has_ragged_input, without.has_ragged_input) == (True, False)


GIVEN: dict[str, int | str] = {
    "engine": "torch",
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 3,
    "hosts": 3,
    "placement": "ray",
    "dtype": "bfloat16",
    "float32_products": "exact",
    "collectives": "gloo",
    "lengths": "LENGTHS",
    "min_sequence_length": 0,
    "task": "embed",
    "max_batch_tokens": 7,
    "max_batch_bytes": 1024,
    "max_running_sequences": 5,
    "kv_cache_blocks": 4,
    "max_queue_requests": 1,
    "max_queue_bytes": 2048,
    "hang_seconds": 3,
    "drain_seconds": 7,
    "forward_timeout_seconds": 60,
    "threads_per_rank": 2,
    "start_timeout_seconds": 9,
}


def test_every_parameter_is_read() -> None:
    config = ids_config(**GIVEN, **{"module.hidden": "12"})
    assert vars(config.parameters) == GIVEN
    assert not vars(Parameters("echo")).items() & GIVEN.items()
    assert config.module_parameters == {"hidden": "12"}
    assert parse(*config.source) == config


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("engine", "tensorflow", "is 'tensorflow'.*torch"),
        ("tensor_parallel_size", "0", "is '0'.*at least 1"),
        ("pipeline_parallel_size", "1.5", "is '1.5'.*at least 1"),
        ("placement", "slurm", "is 'slurm'; one of list, ray, none"),
        ("max_batch_bytes", "1023", "is '1023'.*at least 1024"),
        ("tensor_paralel_size", "2", "did you mean 'tensor_parallel_size'"),
        ("zzz", "1", "known: engine, tensor_parallel_size"),
        *(("lengths", name, f"names '{name}'") for name in ("LENGHTS", "IDS", "WIDE", "PAIR")),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}'.*{said}"):
        ids_config(**{key: value})


@pytest.mark.parametrize(
    ("tensors", "more", "said"),
    [
        ([tensor("LENGTHS", INT32, 1)], {"lengths": "LENGTHS"}, "an input with allow_ragged_batch"),
        ([IDS], {"max_batch_size": 0}, "max_batch_size must be at least 1"),
        ([tensor("IDS", INT32, 4, allow_ragged_batch=True)], {}, "'IDS' has allow_ragged_batch"),
        ([tensor("T", "TYPE_STRING", 1)], {}, "'T' is TYPE_STRING; python_mp carries TYPE_BOOL"),
        ([tensor("T", "TYPE_BF16", 1)], {}, "'T' is TYPE_BF16; python_mp carries TYPE_BOOL"),
    ],
)
def test_what_cannot_be_served_is_refused(tensors: Any, more: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model_config(Path("m"), tensors, [HIDDEN, *tensors[:1]], **{"engine": "echo"} | more)


def test_what_was_built_says_engine_and_dtype() -> None:
    text, built = ids_config(engine="torch").source[0], ("torch", "bfloat16")
    config = parse(text, "models/m", "1", *built)
    assert (config.parameters.engine, config.parameters.dtype) == built
    assert parse(*config.source) == config
    with pytest.raises(ConfigError, match="built with engine onnxruntime, but config.pbtxt says"):
        parse(text, "models/m", "1", "onnxruntime", "int8")
    with pytest.raises(ConfigError, match="'engine' is missing, which .*; one of echo"):
        model_config(Path("m"), [IDS], [HIDDEN])


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ("N:A", "names 'B' 0 times"),
        ("N:A+B, M:B+Y", "names 'B' 2 times"),
        ("N:A+B, M:D+Y", "names 'D', which is not ragged"),
        ("N:A+B, M:Z+Y", "names 'Z', which is no tensor of the model"),
        ("N:A, O:B+Y", "names 'O', which is no input TYPE_INT32"),
        ("N:A, M:", "is 'N:A, M:'; write the input of lengths, or several with their tensors"),
        ("N:A+B, :Y", "write the input of lengths"),
    ],
)
def test_lengths_of_their_own_name_each_ragged_tensor_once(lengths: str, said: str) -> None:
    def config(lengths: str) -> ModelConfig:
        inputs = [tensor(each, INT32, -1, allow_ragged_batch=True) for each in "AB"]
        inputs += [tensor(each, INT32, 1) for each in "NMD"]
        outputs = [tensor("Y", INT32, -1), tensor("S", INT32, 1)]
        return model_config(Path("m"), inputs, outputs, engine="echo", lengths=lengths)

    good = config("N:A+Y, M : B")
    assert [each.group for each in (*good.inputs, *good.outputs)] == [0, 1, 0, 0, 0, 0, 0]
    assert good.batch_inputs == ("A", "B", "D")
    with pytest.raises(ConfigError, match=f"'lengths'.*{said}"):
        config(lengths)
