"""Every row of the table of docs/openai.md, and bodies that nobody thought of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

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
from server.process.installation import PROJECT
from tests.support.gateways import Gateway, gateway

GOOD: dict[str, dict[str, Any]] = {
    "chat": {"model": "talk", "messages": [{"role": "user", "content": "a"}]},
    "completions": {"model": "talk", "prompt": "a"},
    "embeddings": {"model": "vectors", "input": "a"},
    "rerank": {"model": "judge", "query": "a", "documents": ["a"]},
}
PATHS = {"chat": "/v1/chat/completions", "another path": "/v1/another"}
BODIES = {
    "chat": Conversation,
    "completions": Continuation,
    "embeddings": Embedding,
    "rerank": Ranking,
}


def talk(text: str) -> dict[str, Any]:
    return GOOD["chat"] | {"messages": [{"role": "user", "content": text}]}


WORDS: dict[str, Any] = {
    '`{"model": "an embed model"}`': {"model": "vectors"},
    "a prompt and `max_tokens` beyond the context": {"max_tokens": 5000},
    "a text of more than 64 KiB": {"input": "a" * (64 * 1024 + 1)},
    "more `dimensions` than the model has": {"dimensions": 5},
    "a body that is not JSON": b"{",
    "a body that is no object": b"[1]",
    "a body of more than 16 MiB": b" " * (16 * 1024 * 1024 + 1),
    "the model's queue is full; `Retry-After`": talk("[full]"),
    "a model that is being loaded; `Retry-After`": {"model": "coming"},
    "a model whose ranks are all being restarted; `Retry-After`": talk("[restarting]"),
    "a request that ended its group of ranks twice": talk("[poison]"),
    "": b"{}",
    "GET": None,
}
"""What stands in the table in words, of which the server is as any other."""
SETTINGS: dict[str, dict[str, str]] = {
    "no token, or another, where `GATEWAY_TOKEN` is set": {"token": "a-token"},
    "a gateway without Triton's `ADMIN_TOKEN`": {},
    "Triton is not there; `Retry-After`": {},
}


def rows() -> list[list[str]]:
    lines = (PROJECT / "docs" / "openai.md").read_text().splitlines()
    table = lines[lines.index("| asked | with | status | type | code | param |") + 2 :]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with gateway() as running:
        yield running


def expect(row: list[str], answer: tuple[int, Any, dict[str, str]]) -> None:
    status, content, headers = answer
    error = content["error"]
    found = [str(status), error["type"], error["code"], error["param"] or ""]
    assert found == row[2:], error["message"]
    assert error["message"]
    assert ("retry-after" in headers) == ("Retry-After" in row[1])


def body(asked: str, said: str) -> Any:
    change = WORDS[said] if said in WORDS else json.loads(said.strip("`"))
    return GOOD[asked] | change if isinstance(change, dict) else change


@pytest.mark.parametrize("row", [row for row in rows() if row[1] not in SETTINGS], ids=" ".join)
def test_table(served: Gateway, row: list[str]) -> None:
    expect(row, served.ask(PATHS.get(row[0], f"/v1/{row[0]}"), body(row[0], row[1])))


@pytest.mark.parametrize("row", [row for row in rows() if row[1] in SETTINGS], ids=" ".join)
def test_table_of_other_gateways(row: list[str]) -> None:
    with gateway(**SETTINGS[row[1]]) as other:
        other.triton.is_open = "ADMIN_TOKEN" not in row[1]
        if "not there" in row[1]:
            other.run(other.stop_triton())
        for headers in ({}, {"authorization": "Bearer b-token"}):
            expect(row, other.ask(PATHS["chat"], GOOD["chat"], **headers))


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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
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
