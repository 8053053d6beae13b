"""Every row of the table of docs/openai.md, and bodies that nobody thought of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import Mock

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from gateway.chat_completions import Conversation
from gateway.embeddings import Wanted as Embedding
from gateway.reranking import Wanted as Ranking
from gateway.text_completions import Continuation
from gateway.translating import translated
from python_mp.front.schedule.waiting import Waiting
from python_mp.model.config import Parameters
from python_mp.model.errors import Unavailable
from python_mp.model.request import Request
from tests.support.gateways import Gateway, gateway
from tests.support.openai_rows import (
    GOOD,
    KINDS,
    PATHS,
    SETTINGS,
    WORDS,
    body,
    expect,
    rows,
    set_up,
)

BODIES = {
    "chat": Conversation,
    "completions": Continuation,
    "embeddings": Embedding,
    "rerank": Ranking,
}


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with gateway() as running:
        yield running


def expect_raised(row: list[str], client: openai.OpenAI, path: str, given: Any) -> None:
    """By OpenAI's own client."""
    path, raw = path.removeprefix("/v1"), {"headers": {"content-type": "application/json"}}
    how: Any = {"content": given, "options": raw} if isinstance(given, bytes) else {"body": given}
    post = partial(client.post, path, cast_to=object, **how)
    with pytest.raises(openai.APIStatusError) as raised:
        (partial(client.get, path, cast_to=object) if given is None else post)()
    error = raised.value
    assert type(error).__name__ == KINDS.get(error.status_code, "APIStatusError")
    found = [str(error.status_code), error.type, error.code, error.param or ""]
    assert found == row[2:]


@pytest.mark.parametrize("row", [row for row in rows() if row[1] not in SETTINGS], ids=" ".join)
def test_table(served: Gateway, row: list[str]) -> None:
    path, given = PATHS.get(row[0], f"/v1/{row[0]}"), body(row[0], row[1])
    expect(row, served.ask(path, given))
    with served.client() as client:
        expect_raised(row, client, path, given)


@pytest.mark.parametrize("row", [row for row in rows() if row[1] in SETTINGS], ids=" ".join)
def test_table_of_other_gateways(row: list[str]) -> None:
    with gateway(**SETTINGS[row[1]]) as other:
        set_up(other, row[1])
        for headers in ({}, {"authorization": "Bearer b-token"}):
            expect(row, other.ask(PATHS["chat"], GOOD["chat"], **headers))
        with other.client("b-token") as client:
            expect_raised(row, client, PATHS["chat"], GOOD["chat"])


def test_all_of_it_is_in_the_table() -> None:
    """Each field that is refused by its name, and each set of words."""
    said = {row[1] for row in rows()}
    assert (WORDS.keys() | SETTINGS.keys()) <= said
    for asked, kind in BODIES.items():
        shown = {row[5].partition("[")[0].partition(".")[0] for row in rows() if row[0] == asked}
        for name, field in kind.model_fields.items():
            refuses = any(each.__class__.__name__ == "BeforeValidator" for each in field.metadata)
            if refuses and field.annotation is Any:
                assert name in shown, f"{asked}: {name}"


def test_a_full_queue_is_what_the_model_says_it_is() -> None:
    """The one sentence that is known by its words, from where it is made."""
    bounds, request = Mock(Parameters, max_queue_requests=0), Mock(Request, continues=False)
    with pytest.raises(Unavailable) as full:
        Waiting[Request](bounds).add(request)
    told = translated(InferenceServerException(str(full.value), "StatusCode.UNAVAILABLE"), {})
    assert told.status == 429


TEXTS = st.text(max_size=5) | st.sampled_from(["\ud800", "a\udfff"])
"""The latter are what JSON can say and no text may hold."""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("asked", GOOD)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_body_is_answered(served: Gateway, asked: str, data: st.DataObject) -> None:
    """A field of any value is served, or refused with its name."""
    names = [name for name in BODIES[asked].model_fields if name not in ("max_tokens", "stream")]
    name, value = data.draw(st.sampled_from(names)), data.draw(VALUES)
    given = GOOD[asked] | {"max_tokens": 2} if asked in ("chat", "completions") else GOOD[asked]
    status, answer, _ = served.ask(PATHS.get(asked, f"/v1/{asked}"), {**given, name: value})
    assert status == 200 or (status in (400, 404) and answer["error"]["param"].startswith(name))


@pytest.mark.parametrize("asked", GOOD)
def test_what_no_text_may_hold_is_refused_wherever_it_stands(served: Gateway, asked: str) -> None:
    path, good = PATHS.get(asked, f"/v1/{asked}"), GOOD[asked]
    deep = b'{"model": "talk", "user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert served.ask(path, deep)[0] == 400
    for depth in range(100, 1100, 50):  # Where one can read it, and another cannot write it.
        at = f'{{"model": "talk", "user": {"[" * depth}{"]" * depth}}}'.encode()
        assert served.ask(path, at)[0] == 400
    for wrong in (*({**good, name: "\ud800"} for name in good), {**good, "\ud800": 1}):
        status, answer, _ = served.ask(path, wrong)
        assert (status, answer["error"]["code"]) == (400, "invalid_value")
