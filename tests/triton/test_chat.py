"""Conversations through an ensemble of the task `generate`: from a folder through `new` and a
build to every client, compared with transformers' `generate`."""

from __future__ import annotations

import asyncio
import io
import json
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from tritonclient.grpc.aio import InferenceServerClient

from build_scripts import build
from build_scripts.new.__main__ import main as new
from clients import chat, chat_async
from clients.at_once import cell
from clients.streaming import Part, StreamError, stream
from server.process.launch import TritonServer
from tests.support import leavers
from tests.support.calls import in_parallel, scrape, settled
from tests.support.gateways import Gateway, gateway
from tests.support.openai_rows import PATHS, SETTINGS, body, expect, rows
from tests.support.processes import until
from tests.support.serving import Serve
from tests.unit.test_prompt import CHATML
from tests.unit.test_tokenizer_kinds import byte_level

pytestmark = pytest.mark.timeout(600)
TOKENS = 24
FREE_SECONDS = 2.5
"""Until the last who left have been told, and a metric is written: each second."""
QUESTIONS = ["What is a kitten?", "Grüße 中文", "def f(x):", "x" * 200, "A list, please. " * 6]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "checkpoint"
    special = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHATML}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level("<s>", "</s>"), **special)
    tokenizer.save_pretrained(path)
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 512}
    config = LlamaConfig(**sizes, **heads, **ends, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wanted(checkpoint: Path) -> dict[str, str]:
    """The answers of transformers, by the question."""
    model, tokenizer = (
        kind.from_pretrained(checkpoint) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    found = {}
    for question in QUESTIONS:
        talk = [{"role": "user", "content": question}]
        given = tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**given, max_new_tokens=TOKENS, do_sample=False)
        new_ids = ids[0, given["input_ids"].shape[1] :].tolist()
        found[question] = tokenizer.backend_tokenizer.decode(new_ids)
    return found


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> Path:
    """A repository with `chat`."""
    folder = checkpoint.parent / "models"
    where = f"--repository={folder}"
    assert new(["chat", str(checkpoint), "--tensor-parallel-size=2", where]) == 0
    assert build.main([where, f"--workspace={checkpoint.parent / 'workspace'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def server(serve: Serve, models: Path) -> Iterator[TritonServer]:
    with serve(models) as running:
        yield running


@pytest.fixture(scope="module")
def served(server: TritonServer) -> Iterator[Gateway]:
    with gateway(server.endpoints.grpc_url, admin_token=server.settings.token) as running:
        yield running


def ask(server: TritonServer, question: str, **parameters: Any) -> list[Part]:
    talk, url = [{"role": "user", "content": question}], server.endpoints.grpc_url
    return list(chat.answer(talk, {"max_tokens": TOKENS, **parameters}, url=url))


def joined(parts: list[Part]) -> str:
    *before, last = parts
    assert last.finish_reason in ("stop", "length")
    assert not any(part.finish_reason for part in before)
    assert [part.tokens for part in parts] == sorted(part.tokens for part in parts)
    return "".join(part.text for part in parts)


def test_answers_are_those_of_transformers(server: TritonServer, wanted: dict[str, str]) -> None:
    def talk(number: int) -> None:
        for question in QUESTIONS[number:] + QUESTIONS[:number]:
            assert joined(ask(server, question)) == wanted[question]

    in_parallel(3, talk)


def test_programs(
    server: TritonServer,
    wanted: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, question = server.endpoints.grpc_url, QUESTIONS[0]
    options = [f"--url={url}", f"--max-tokens={TOKENS}"]
    assert chat.main([*options, *question.split()]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n"))
    assert chat.main(options) == 0
    assert capsys.readouterr().out == f"{wanted[question]}\n" * 2
    assert chat.main([*options, "--temperature=-1", "a"]) == 1
    assert "temperature" in capsys.readouterr().err

    async def both() -> list[str]:
        async with InferenceServerClient(url) as client:
            made = (chat_async.answer(client, each, max_tokens=TOKENS) for each in QUESTIONS[:2])
            return await asyncio.gather(*made)

    assert asyncio.run(both()) == [wanted[each] for each in QUESTIONS[:2]]


def test_over_http(server: TritonServer, wanted: dict[str, str]) -> None:
    talk = json.dumps([{"role": "user", "content": QUESTIONS[1]}])
    said = {"MESSAGES": talk, "parameters": {"max_tokens": TOKENS, "temperature": "0"}}
    url = f"http://{server.endpoints.http_url}/v2/models/chat/generate_stream"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(said).encode())) as found:
        lines = [line.removeprefix(b"data: ") for line in found if line.startswith(b"data: ")]
    assert "".join(json.loads(line)["ANSWER"] for line in lines) == wanted[QUESTIONS[1]]


@pytest.mark.parametrize("question", QUESTIONS)
def test_by_openais_client(served: Gateway, wanted: dict[str, str], question: str) -> None:
    """Whole, as events, and by the steps, which give logprobs: each the same answer."""
    talk: list[Any] = [{"role": "user", "content": question}]
    asked: dict[str, Any] = {"model": "chat", "messages": talk, "max_completion_tokens": TOKENS}
    with served.client() as client:
        create = partial(client.chat.completions.create, **asked, temperature=0)
        with create(stream=True) as events:
            parts = [chunk.choices[0] for chunk in events]
        whole, by_steps = create().choices[0], create(logprobs=True, top_logprobs=3)
        shown = by_steps.choices[0]
    assert "".join(part.delta.content or "" for part in parts) == wanted[question]
    assert whole.message.content == shown.message.content == wanted[question]
    assert parts[-1].finish_reason == whole.finish_reason == shown.finish_reason
    tokens = shown.logprobs.content
    assert len(tokens) == by_steps.usage.completion_tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0


TABLE = [
    row
    for row in rows()
    if row[0] in ("chat", "completions") and row[1] not in SETTINGS and int(row[2]) < 429
]


@pytest.mark.parametrize("row", TABLE, ids=" ".join)
def test_refusals_are_those_of_the_page(served: Gateway, row: list[str]) -> None:
    given = body(*row[:2])
    if isinstance(given, dict) and given["model"] == "talk":
        given |= {"model": "chat"}
    expect(row, served.ask(PATHS.get(row[0], f"/v1/{row[0]}"), given))


def test_openais_client_goes_on_with_ids(served: Gateway, checkpoint: Path) -> None:
    ids = AutoTokenizer.from_pretrained(checkpoint)("The list").input_ids
    with served.client() as client:
        create = partial(client.completions.create, model="chat", temperature=0, logprobs=1)
        first, second = create(prompt="The list"), create(prompt=ids)
        whole = first.choices[0].text
        cut = client.completions.create(
            model="chat", prompt=ids, temperature=0, logprobs=0, stop=whole[5:7]
        )
        with pytest.raises(openai.BadRequestError) as refused:
            create(prompt="a " * 600)
        drawn = client.completions.create(model="chat", prompt="a", n=3, seed=1, temperature=2)
    assert second.choices[0].text == whole
    assert cut.choices[0].text == whole[: whole.find(whole[5:7])]
    assert cut.choices[0].finish_reason == "stop"
    assert first.usage.prompt_tokens == second.usage.prompt_tokens == len(ids)
    assert refused.value.code == "context_length_exceeded"
    assert len({choice.text for choice in drawn.choices}) == 3


def test_draws_follow_from_the_seed(server: TritonServer) -> None:
    how = {"temperature": "1.5", "top_p": "0.95", "ignore_eos": True}
    first, second, other = (joined(ask(server, "a", seed=each, **how)) for each in (1, 1, 2))
    assert first == second != other


def test_a_text_is_gone_on_with_up_to_a_stop(server: TritonServer) -> None:
    url, inputs = server.endpoints.grpc_url, {"TEXT": cell("The list")}
    whole = joined(list(stream("chat", inputs, {"max_tokens": TOKENS}, url)))
    stop = whole[5:7]
    cut = joined(list(stream("chat", inputs, {"max_tokens": TOKENS, "stop": stop}, url)))
    assert cut == whole[: whole.find(stop)]


def test_who_stops_reading_spoils_nothing(server: TritonServer, wanted: dict[str, str]) -> None:
    url, talk = server.endpoints.grpc_url, [{"role": "user", "content": "a"}]
    for _ in range(3):
        parts = chat.answer(talk, {"max_tokens": 400, "ignore_eos": True}, url=url)
        next(parts)
        parts.close()
    assert joined(ask(server, QUESTIONS[0])) == wanted[QUESTIONS[0]]
    cancelled = {"model": "chat_decoder", "reason": "cancelled"}
    until(lambda: settled(server.endpoints).total("refused_total", **cancelled) == 3)
    server.control.unload("chat")  # Nothing stays in flight.
    until(lambda: not any(v.is_active for v in server.control.index() if v.model == "chat"))
    server.control.load("chat")


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.campaign)])
def test_triton_outlives_all_who_leave(server: TritonServer, served: Gateway, count: int) -> None:
    """And what they had is free at once."""
    asked: dict[str, Any] = {"model": "chat", "max_tokens": 300, "extra_body": {"ignore_eos": True}}
    pid = server.pid
    asyncio.run(leavers.crowd(served.url, count, asked))
    until(lambda: not scrape(server.endpoints).total("running_sequences"), FREE_SECONDS)
    left = settled(server.endpoints)
    assert left.total("kv_blocks_used") == 0
    assert left.total("refused_total", model="chat_decoder", reason="cancelled") > count / 10
    assert (server.pid, server.is_ready()) == (pid, True)
    with served.client() as client:
        assert client.completions.create(**asked, prompt="And now?").usage


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"MESSAGES": cell("[")}, {}, "MESSAGES is not valid JSON"),
    ({"TEXT": cell("a"), "MESSAGES": cell("[]")}, {}, "either MESSAGES or TEXT"),
    ({"TEXT": cell("a ") * 600}, {}, "512"),
    ({"TEXT": cell("a")}, {"top_k": "few"}, "top_k"),
]


def test_refuses_with_a_sentence(server: TritonServer) -> None:
    for inputs, parameters, said in REFUSED:
        with pytest.raises(StreamError, match=said):
            list(stream("chat", inputs, parameters, server.endpoints.grpc_url))
    with pytest.raises(StreamError, match="cannot be reached; is it running"):
        list(stream("chat", REFUSED[0][0], {}, "127.0.0.1:9"))
