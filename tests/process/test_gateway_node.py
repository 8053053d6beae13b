"""OpenAI's client for Node before the gateway. Its types judge the answers, by its own compiler, as
written down: a field that they do not know, or that is missing, is an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.process.installation import PROJECT
from tests.support.gateways import Gateway, gateway
from tests.support.openai_rows import GOOD, KINDS, PATHS, SETTINGS, body, rows, set_up
from tests.support.programs import Program
from tests.support.stand_in_triton import rendered, said, vector

CLIENT = PROJECT / "clients"
CALLS = PROJECT / "tests" / "support" / "openai_calls.mjs"
SECONDS = 120.0
TALK = [{"role": "user", "content": "Grüße, 中文"}]
CHAT = {"model": "talk", "messages": TALK, "max_completion_tokens": 40}
TEXT = {"model": "talk", "prompt": ["one ", "two "], "n": 2}
VECTORS = {"model": "vectors", "input": ["a", "b c"]}
WHOLE, EVENTS = {"stream": False}, {"stream": True, "stream_options": {"include_usage": True}}
LIKELY = {"logprobs": True, "top_logprobs": 2}
CASES: list[tuple[str, str, list[Any]]] = [
    ("Model", "models.list", []),
    ("Model", "models.retrieve", ["talk"]),
    ("CreateEmbeddingResponse", "embeddings.create", [VECTORS]),
    ("CreateEmbeddingResponse", "embeddings.create", [VECTORS | {"encoding_format": "float"}]),
    ("CreateEmbeddingResponse", "embeddings.create", [VECTORS | {"dimensions": 2}]),
    *(
        (
            "ChatCompletionChunk" if how["stream"] else "ChatCompletion",
            "chat.completions.create",
            [it],
        )
        for how in (WHOLE, EVENTS)
        for more in ({}, LIKELY, {"n": 3, "seed": 4})
        for it in [CHAT | how | more]
    ),
    *(
        ("TextChunk" if how["stream"] else "Completion", "completions.create", [TEXT | how | more])
        for how in (WHOLE, EVENTS)
        for more in ({}, {"logprobs": 2})
    ),
]
HEAD = """
import OpenAI from "openai";
type Model = OpenAI.Model;
type CreateEmbeddingResponse = OpenAI.CreateEmbeddingResponse;
type ChatCompletion = OpenAI.ChatCompletion;
type ChatCompletionChunk = OpenAI.ChatCompletionChunk;
type Completion = OpenAI.Completion;
// Of events OpenAI says, but not its type, that the reason and the usage are null but in the last.
type Unended = Omit<OpenAI.CompletionChoice, "finish_reason"> & { finish_reason: "length" | null };
type Usage = OpenAI.CompletionUsage | null;
type TextChunk = Omit<Completion, "choices" | "usage"> & { choices: Unended[]; usage: Usage };
const model = { id: "a", created: 0, owned_by: "b", object: "model" } as const;
// @ts-expect-error
export const known: Model = { ...model, more: 1 };
// @ts-expect-error
export const whole: Model = { id: "a", created: 0, object: "model" };
"""


@pytest.fixture(scope="module")
def node(program: Program) -> Path:
    """A folder with the packages that clients/package.json pins, and both programs."""
    npm, folder = program("npm"), PROJECT / "build" / "node"
    wanted = (CLIENT / "package.json").read_text()
    stamp = folder / "installed.json"
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(wanted)
        install = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"]
        made = subprocess.run(install, cwd=folder, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"npm could not install openai: {made.stderr[-300:]}")
        stamp.write_text(wanted)
    for file in (CLIENT / "openai_node.mjs", CALLS):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with gateway() as running:
        yield running


def run(command: list[str], node: Path, given: str = "", **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=node,
        env=os.environ | environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def asked(node: Path, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = "".join(json.dumps(call) + "\n" for call in calls)
    return [json.loads(line) for line in run(["node", CALLS.name], node, lines).splitlines()]


def call(served: Gateway, name: str, *given: Any, key: str = "none") -> dict[str, Any]:
    return {"url": f"{served.url}/v1", "key": key, "call": name, "with": given}


def test_every_answer_is_of_the_clients_types(node: Path, served: Gateway) -> None:
    found = asked(node, [call(served, name, *given) for _, name, given in CASES])
    assert not [each for each in found if "error" in each]
    shown = [HEAD]
    for number, ((kind, _, _), answer) in enumerate(zip(CASES, found, strict=True)):
        many = "items" in answer
        written = json.dumps(answer["items" if many else "answer"], ensure_ascii=False)
        shown.append(f"export const a{number}: {kind}{'[]' * many} = {written};\n")
    (node / "answers.ts").write_text("".join(shown))
    strict = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"]
    run(["node_modules/.bin/tsc", *strict, "--module", "nodenext", "answers.ts"], node)


def test_answers_are_those_of_the_model(node: Path, served: Gateway) -> None:
    """Whole and in parts."""
    by_call = [
        call(served, "embeddings.create", VECTORS),
        *(call(served, "chat.completions.create", CHAT | how) for how in (WHOLE, EVENTS)),
        *(call(served, "completions.create", TEXT | how) for how in (WHOLE, EVENTS)),
    ]
    vectors, chat, chunks, text, pieces = asked(node, by_call)
    assert [each["embedding"] for each in vectors["answer"]["data"]] == [vector("a"), vector("b c")]
    wanted = said(rendered(TALK), 40)
    assert chat["answer"]["choices"][0]["message"]["content"] == wanted
    deltas = [it["delta"].get("content", "") for each in chunks["items"] for it in each["choices"]]
    assert "".join(deltas) == wanted
    assert chunks["items"][-1]["usage"] == chat["answer"]["usage"]
    for index, choice in enumerate(text["answer"]["choices"]):
        parts = [it for each in pieces["items"] for it in each["choices"] if it["index"] == index]
        assert "".join(it["text"] for it in parts) == choice["text"]
        assert choice["text"] == said(TEXT["prompt"][index // 2], 16)


@pytest.mark.parametrize("word", ["[fail]", "[cut]"])
def test_a_stream_that_fails_raises(node: Path, served: Gateway, word: str) -> None:
    (found,) = asked(node, [call(served, "completions.create", TEXT | EVENTS | {"prompt": word})])
    assert found["error"]["kind"] == "APIError"


def test_every_row_of_the_table(node: Path, served: Gateway) -> None:
    """Of docs/openai.md; those of other gateways, too."""
    usual = [row for row in rows() if row[1] not in SETTINGS]
    expect(usual, asked(node, [refused(served, row) for row in usual]))
    for row in rows():
        if row[1] in SETTINGS:
            with gateway(**SETTINGS[row[1]]) as other:
                set_up(other, row[1])
                expect([row], asked(node, [refused(other, row)]))


def refused(served: Gateway, row: list[str]) -> dict[str, Any]:
    path = PATHS.get(row[0], f"/v1/{row[0]}").removeprefix("/v1")
    given = GOOD[row[0]] if row[1] in SETTINGS else body(row[0], row[1])
    if given is None:
        return call(served, "get", path)
    plain = {"content-type": "application/json"}
    given = given.decode() if isinstance(given, bytes) else given
    return call(served, "post", path, {"body": given, "headers": plain})


def expect(wanted: list[list[str]], found: list[dict[str, Any]]) -> None:
    for row, each in zip(wanted, found, strict=True):
        error = each["error"]
        told = [str(error["status"]), error["type"], error["code"], error["param"] or ""]
        assert told == row[2:], row
        assert error["kind"] == KINDS.get(error["status"], "APIError")
        assert bool(error["retry"]) == ("Retry-After" in row[1])


def test_the_example_runs(node: Path, served: Gateway) -> None:
    command = ["node", "openai_node.mjs", "a b", "talk", "vectors"]
    shown = run(command, node, OPENAI_BASE_URL=f"{served.url}/v1")
    assert "models: judge, talk, vectors" in shown
    assert "vectors: 4 values of 3 tokens" in shown
    assert "(64 tokens)" in shown
    assert said(rendered([{"role": "user", "content": "a b"}]), 64) in shown
