"""OpenAI's own client before the gateway: each answer fits the client's types, with nothing unknown
and nothing missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from gateway import registry, stream_call
from gateway.silence import Limits
from tests.support.gateways import LIMIT, Gateway, gateway
from tests.support.stand_in_triton import rendered, said, score, vector

TALK: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße, 中文 {and} more"},
]
PROMPT = rendered(TALK)


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with gateway() as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Gateway) -> Iterator[OpenAI]:
    with served.client() as made:
        yield made


def known(value: Any) -> None:
    """Nothing that the types do not know."""
    if isinstance(value, BaseModel):
        assert not value.model_extra, value
        for name in type(value).model_fields:
            known(getattr(value, name))
    elif isinstance(value, list):
        for each in value:
            known(each)


def fits(answer: BaseModel) -> None:
    """Nor is anything missing, or of another type."""
    known(answer)
    type(answer).model_validate(answer.model_dump(mode="json", exclude_unset=True), strict=True)


def test_models(client: OpenAI) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == ["judge", "talk", "vectors"]
    for model in [*models, client.models.retrieve("talk")]:
        fits(model)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
@pytest.mark.parametrize("dimensions", [None, 2])
def test_embeddings(client: OpenAI, encoding: Any, dimensions: int | None) -> None:
    """More of them than a request to Triton takes, in their order."""
    texts = [f"text {'and ' * n}more" for n in range(11)]
    given = {"encoding_format": encoding, "dimensions": dimensions}
    answer = client.embeddings.create(
        model="vectors", input=texts, **{name: it for name, it in given.items() if it}
    )
    if encoding != "base64":
        fits(answer)
        found = [each.embedding for each in answer.data]
        assert found == [vector(text, dimensions or 4) for text in texts]
    assert [each.index for each in answer.data] == list(range(11))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, texts))
    alone = client.embeddings.create(model="vectors", input=texts[3])
    assert alone.data[0].embedding == vector(texts[3])


@pytest.mark.parametrize("documents", [["a b", "b c d", "x"], [{"text": "a b"}, {"text": "x"}]])
def test_rerank(served: Gateway, documents: list[Any]) -> None:
    texts = [each if isinstance(each, str) else each["text"] for each in documents]
    asked = {"model": "judge", "query": "b c", "documents": documents}
    asked |= {"top_n": 2, "return_documents": True}
    status, answer, _ = served.ask("/v1/rerank", asked)
    assert status == 200
    wanted = sorted(range(len(texts)), key=lambda index: -score("b c", texts[index]))[:2]
    assert answer["results"] == [
        {
            "index": index,
            "relevance_score": score("b c", texts[index]),
            "document": {"text": texts[index]},
        }
        for index in wanted
    ]
    assert answer["usage"]["total_tokens"] == sum(len("b c" + text) for text in texts)
    _, whole, _ = served.ask("/v2/rerank", asked | {"top_n": None, "return_documents": False})
    assert [sorted(each) for each in whole["results"]] == [["index", "relevance_score"]] * len(
        texts
    )


@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_conversations(client: OpenAI, logprobs: int | None, count: int) -> None:
    """Whole and as events, and the same in both."""
    asked: dict[str, Any] = {"model": "talk", "messages": TALK, "max_completion_tokens": 60}
    asked |= {"n": count, "user": "me", "temperature": None}
    if logprobs is not None:
        asked |= {"logprobs": True, "top_logprobs": logprobs}
    whole = client.chat.completions.create(**asked)
    fits(whole)
    assert [choice.message.content for choice in whole.choices] == [said(PROMPT, 60)] * count
    assert [choice.finish_reason for choice in whole.choices] == ["length"] * count
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
        len(PROMPT.encode()),
        60 * count,
    )
    with client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ) as events:
        chunks = list(events)
    for chunk in chunks:
        fits(chunk)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    for index, choice in enumerate(whole.choices):
        parts = [it for chunk in chunks for it in chunk.choices if it.index == index]
        assert parts[0].delta.role == "assistant"
        assert "".join(it.delta.content or "" for it in parts) == choice.message.content
        assert [it.finish_reason for it in parts if it.finish_reason] == ["length"]
        tokens = [one for it in parts if it.logprobs for one in it.logprobs.content or []]
        assert (choice.logprobs is None) == (logprobs is None)
        if choice.logprobs is not None:
            assert tokens == choice.logprobs.content
            assert len(tokens) == 60
            assert {len(one.top_logprobs) for one in tokens} == {logprobs}
            assert tokens[0].token == PROMPT[0]


@pytest.mark.parametrize("prompt", ["Grüße ", ["one ", "two "], [72, 105], [[72, 105], [33]]])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_texts(client: OpenAI, prompt: Any, logprobs: int | None) -> None:
    asked: dict[str, Any] = {"model": "talk", "prompt": prompt, "n": 2, "logprobs": logprobs}
    texts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    texts = [each if isinstance(each, str) else bytes(each).decode() for each in texts]
    whole = client.completions.create(**asked)
    fits(whole)
    wanted = [said(text, 16) for text in texts for _ in range(2)]
    assert [choice.text for choice in whole.choices] == wanted
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == sum(len(text.encode()) for text in texts)
    with client.completions.create(**asked, stream=True) as events:
        chunks = list(events)
    known(chunks)  # Of which the types want a reason in every part: OpenAI gives none either.
    for index, choice in enumerate(whole.choices):
        parts = [it for chunk in chunks for it in chunk.choices if it.index == index]
        assert "".join(it.text for it in parts) == choice.text
        if logprobs:
            found = choice.logprobs
            assert found is not None
            offsets = [at for it in parts if it.logprobs for at in it.logprobs.text_offset or []]
            assert offsets == found.text_offset
            assert offsets == sorted(offsets)
            assert len(offsets) == len(found.tokens or []) == 16


def test_parameters_reach_triton(served: Gateway, client: OpenAI) -> None:
    extra = {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True}
    client.chat.completions.create(
        model="talk",
        messages=TALK,
        n=2,
        seed=2**63 - 1,
        stop="[x]",
        max_tokens=3,
        top_p=0,
        presence_penalty=-1,
        logit_bias={"42": -5},
        extra_body=extra,
    )
    found = sorted(served.triton.asked[-2:], key=lambda each: each["seed"])
    assert [each.pop("seed") for each in found] == [-(2**63), 2**63 - 1]
    wanted = {"max_tokens": 3, "temperature": "1.0", "top_p": "1e-06", "presence_penalty": "-1.0"}
    wanted |= {"stop": '["[x]"]', "logit_bias": '{"42": -5.0}', "top_k": 7, "min_p": "0.1"}
    assert found == [wanted | {"repetition_penalty": "1.2", "ignore_eos": True}] * 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_who_goes_away_leaves_and_does_not_cancel(
    served: Gateway, stream: bool, count: int
) -> None:
    """It is said again until the decoder knows of the stream."""
    served.triton.deaf = count
    with served.client() as client:
        asked: dict[str, Any] = {"model": "talk", "prompt": "[hang]", "n": count}
        if stream:
            with client.completions.create(**asked, stream=True) as events:
                next(iter(events))
        else:
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(**asked, timeout=0.5)
        for _ in range(count):
            assert served.run(served.triton.left.get()) == "talk"
    assert served.triton.deaf == 0
    assert served.triton.cancelled.empty()


def test_what_does_not_end_is_cancelled_at_last(
    served: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_call, "LEAVING_SECONDS", 0.2)
    served.triton.deaf = 1000
    with served.client() as client:
        asked: dict[str, Any] = {"model": "talk", "prompt": "[hang]", "stream": True}
        with client.completions.create(**asked) as events:
            next(iter(events))
    assert served.run(served.triton.cancelled.get()) == "talk"
    served.triton.deaf = 0


@pytest.mark.parametrize("where", ["[full]", "[fail]", "a"])
def test_no_stream_that_ends_by_itself_is_left_or_cancelled(served: Gateway, where: str) -> None:
    calls = len(served.triton.calls)
    assert served.ask("/v1/completions", {"model": "talk", "prompt": where})[0] in (200, 429, 500)
    assert served.triton.calls[calls:] == []
    assert served.triton.cancelled.empty()


@pytest.mark.parametrize("word", ["[fail]", "[cut]"])
def test_a_stream_that_fails_says_so(served: Gateway, word: str) -> None:
    with (
        served.client() as client,
        client.completions.create(model="talk", prompt=word, stream=True) as events,
        pytest.raises(openai.APIError, match="not numbers" if word == "[fail]" else "before its"),
    ):
        list(events)


def test_tokens_open_doors() -> None:
    with gateway(token="a-token", admin_token="the-admin-token") as served:
        served.triton.is_open = False
        with served.client("a-token") as client:
            assert client.embeddings.create(model="vectors", input="a").data
        with served.client("another") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert served.ask("/health")[0] == 200


def test_without_admin_token_it_says_why() -> None:
    with gateway() as served, served.client() as client:
        served.triton.is_open = False
        with pytest.raises(openai.InternalServerError, match="ADMIN_TOKEN"):
            client.models.list()


def test_a_triton_that_says_nothing_is_waited_for_with_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "FRESH", 0.0)
    with gateway(limits=Limits(triton=0.5)) as served:
        served.triton.is_frozen = True
        with ThreadPoolExecutor(8) as pool:
            began = time.monotonic()
            asked = [pool.submit(served.ask, "/v1/models") for _ in range(8)]
            for status, answer, headers in (each.result() for each in asked):
                assert (status, answer["error"]["code"]) == (503, "not_available")
                assert headers["retry-after"]
        assert time.monotonic() - began < 2, "one after the other"
        served.triton.is_frozen = False
        assert served.ask("/v1/models")[0] == 200


EMBED: dict[str, Any] = {"model": "vectors", "input": "a"}
TEXT: dict[str, Any] = {"model": "talk", "prompt": "a"}


@pytest.mark.parametrize(
    ("path", "asked"),
    [("embeddings", EMBED), ("completions", TEXT), ("completions", TEXT | {"logprobs": 1})],
)
@pytest.mark.parametrize("is_frozen", [True, False])
def test_no_answer_is_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any], is_frozen: bool
) -> None:
    """Of a Triton that freezes once its models are known, and of one whose models say nothing."""
    monkeypatch.setattr(registry, "FRESH", LIMIT)
    monkeypatch.setattr(stream_call, "LEAVING_SECONDS", 0.1)
    limits = Limits(triton=0.2) if is_frozen else Limits(answer=0.4)
    with gateway(limits=limits) as served:
        assert served.ask("/v1/models")[0] == 200
        served.triton.is_frozen, served.triton.is_mute = is_frozen, not is_frozen
        began = time.monotonic()
        status, answer, _ = served.ask(f"/v1/{path}", asked)
        found = status, answer["error"]["code"]
        assert found == ((503, "not_available") if is_frozen else (504, "timeout"))
        assert time.monotonic() - began < 2
        served.triton.is_frozen = served.triton.is_mute = False
        assert served.ask(f"/v1/{path}", asked)[0] == 200


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_silence_between_parts_has_an_end(
    monkeypatch: pytest.MonkeyPatch, is_frozen: bool
) -> None:
    monkeypatch.setattr(stream_call, "LEAVING_SECONDS", 0.1)
    said = r"Triton .* 0\.2 s" if is_frozen else r"model .* 0\.6 s"
    with (
        gateway(limits=Limits(triton=0.2, answer=0.6)) as served,
        served.client() as client,
        client.completions.create(**TEXT | {"prompt": "[hang]"}, stream=True) as events,
    ):
        assert next(events).choices[0].text
        served.triton.is_frozen = is_frozen
        with pytest.raises(openai.APIError, match=said):
            list(events)


def test_slow_answers_of_a_living_triton_are_waited_for() -> None:
    """Each part, and what is no stream, for longer than Triton itself may be silent."""
    with gateway(limits=Limits(triton=0.1)) as served:
        asked = TEXT | {"prompt": "[slow]", "max_tokens": 3}
        assert served.ask("/v1/completions", asked)[0] == 200
        assert served.ask("/v1/embeddings", EMBED | {"input": "[slow]"})[0] == 200


def test_models_of_a_triton_that_goes_are_not_said_to_be_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "FRESH", 0.0)
    given = {"model": "talk", "prompt": "a"}
    with gateway() as served:
        served.triton.is_leaving = True
        status, answer, headers = served.ask("/v1/completions", given)
        assert (status, answer["error"]["code"]) == (503, "model_not_ready")
        assert headers["retry-after"]
        served.triton.is_leaving = False
        assert served.ask("/v1/completions", given)[0] == 200


def test_many_at_once(served: Gateway) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        answer = await client.completions.create(
            model="talk", prompt=f"{number} ", max_tokens=number + 1
        )
        return answer.choices[0].text

    async def all_of_them() -> list[str]:
        http = openai.DefaultAsyncHttpxClient(trust_env=False, timeout=LIMIT)
        async with openai.AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="none", max_retries=0, http_client=http
        ) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(40)))

    assert asyncio.run(all_of_them()) == [said(f"{number} ", number + 1) for number in range(40)]
