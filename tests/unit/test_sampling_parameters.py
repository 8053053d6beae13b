"""What requests say of how their tokens are chosen."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.model.errors import InvalidInput
from python_mp.model.sampling_parameters import SamplingParameters, read

VOCABULARY = 1000
ids = st.integers(0, VOCABULARY - 1)
GOOD = {
    "max_tokens": st.integers(10, 1 << 20),
    "min_tokens": st.integers(0, 10),
    "temperature": st.floats(0, 2),
    "top_k": st.integers(0, 100),
    "top_p": st.floats(0.01, 1),
    "min_p": st.floats(0, 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.1, 2),
    "logit_bias": st.dictionaries(ids, st.floats(-100, 100), max_size=5),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.lists(st.text(min_size=1, max_size=9), max_size=4, unique=True).map(tuple),
    "stop_token_ids": st.lists(ids, max_size=4, unique=True).map(tuple),
    "ignore_eos": st.booleans(),
    "logprobs": st.integers(0, 20),
}


@given(st.fixed_dictionaries({}, optional=GOOD), st.booleans())
def test_all_are_read_as_numbers_and_as_text(wanted: dict[str, Any], as_text: bool) -> None:
    def said(value: Any) -> Any:
        if isinstance(value, dict | tuple):
            return json.dumps(value)
        return str(value) if as_text else value

    given_ = {name: said(value) for name, value in wanted.items()}
    settings = read({**given_, "add_generation_prompt": True}, VOCABULARY)
    assert vars(settings) == {**vars(SamplingParameters(seed=settings.seed)), **wanted}


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("max_tokens", [0, -1, 1.5, "x", None, True, 1 << 40], "a whole number, 1 to"),
        ("temperature", [-0.1, "hot", float("nan"), float("inf"), True, [1]], "a number, 0 to 100"),
        ("top_p", [0, 1.1, ""], "a number, above 0 and at most 1"),
        ("logprobs", [21, -1], "0 to 20"),
        ("ignore_eos", ["maybe", 2, None], "true or false"),
        ("stop", ["[1]", '[""]', "[", "x" * 257, json.dumps(["x"] * 17), 5], "a JSON list of at"),
        ("stop_token_ids", ["x", "{}", json.dumps(list(range(1001)))], "a JSON list of at most"),
        ("stop_token_ids", ["[-1]", "[1.5]", '["a"]'], "a whole number"),
        ("stop_token_ids", ["[1000]"], "the id 1000; the model's are below 1000"),
        ("logit_bias", ["[]", "x", 3], "a JSON object of at most"),
        ("logit_bias", ['{"5": 101}', '{"5": null}'], "a number, -100 to 100"),
        ("logit_bias", ['{"x": 1}', '{"-1": 1}'], "a whole number"),
        ("logit_bias", ['{"1000": 1}'], "the id 1000"),
        ("temprature", [1], "did you mean 'temperature'"),
    ],
)
def test_a_bad_one_is_refused_by_name(name: str, values: list[Any], said: str) -> None:
    for value in values:
        with pytest.raises(InvalidInput, match=f"'{name}'.*{said}"):
            read({name: value}, VOCABULARY)


def test_more_may_not_be_asked_for_at_least_than_at_most() -> None:
    with pytest.raises(InvalidInput, match="min_tokens 5 is more than max_tokens 4"):
        read({"min_tokens": 5, "max_tokens": 4}, VOCABULARY)
