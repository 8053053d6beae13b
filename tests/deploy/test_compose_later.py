"""What takes minutes is built behind what is served: `chat`, by compose's service `later`."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import openai
import pytest

from clients import chat
from tests.deploy.stack import KEY, Stack, engine_answers, fresh_clone
from tests.deploy.test_compose import OWNER
from tests.support.processes import until
from tests.support.programs import Program

SECONDS = 1800.0
TALK = [{"role": "user", "content": "What is a kitten?"}]
FEW = {"max_tokens": 12}
pytestmark = [pytest.mark.campaign, pytest.mark.timeout(2 * SECONDS)]


@pytest.fixture
def stack(program: Program, composer: Sequence[str], tmp_path: Path) -> Iterator[Stack]:
    docker = program("docker")
    if not engine_answers(docker):
        pytest.skip("no Docker engine answers here")
    clone = fresh_clone(tmp_path / "model_repository", OWNER, has_chat=True)
    with Stack(composer, docker, clone) as made:
        made.compose("build", "triton", "front", "build")
        yield made


def test_chat_is_served_once_it_is_built(stack: Stack) -> None:
    """By each door of the front."""
    began = time.monotonic()
    stack.compose("up", "--detach", "front", "later")
    url = f"http://127.0.0.1:{stack.ports['HTTP_PORT']}"
    until(lambda: state_of_chat(url) == "it is not built yet", 60)
    served = time.monotonic() - began
    until(lambda: state_of_chat(url) == "", SECONDS)
    built = time.monotonic() - began
    print(f"up {served:.0f} s, chat after {built:.0f} s")
    said = {by_events(url), by_grpc(stack), by_openai(stack)}
    assert len(said) == 1
    assert said.pop()
    [later] = stack.compose("ps", "--all", "--quiet", "later").split()
    until(lambda: stack.inspect(later)["State"]["Status"] == "exited", 60)
    assert stack.inspect(later)["State"]["ExitCode"] == 0
    made = {path.parts[-3] for path in stack.repository.glob("*/*/manifest.json")}
    assert made >= {"chat_prompt", "chat_decoder", "chat_text"}


def state_of_chat(url: str) -> str:
    """Why it is not ready; nothing if it is."""
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=20) as page:
            return str(json.load(page)["models"]["chat"]["reason"])
    except OSError as error:
        said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
        print(f"{time.strftime('%X')} not ready: {error} {said}")
        return "unknown"


def by_events(url: str) -> str:
    body = json.dumps({"MESSAGES": json.dumps(TALK), "parameters": FEW}).encode()
    kind = {"Content-Type": "application/json"}
    at = urllib.request.Request(f"{url}/v2/models/chat/generate_stream", body, kind)
    with urllib.request.urlopen(at, timeout=120) as answer:
        return "".join(json.loads(line[6:])["ANSWER"] for line in answer if line.strip())


def by_grpc(stack: Stack) -> str:
    at = f"127.0.0.1:{stack.ports['GRPC_PORT']}"
    return "".join(part.text for part in chat.answer(TALK, FEW, url=at))


def by_openai(stack: Stack) -> str:
    http = openai.DefaultHttpxClient(trust_env=False)
    url = f"http://127.0.0.1:{stack.ports['OPENAI_PORT']}/v1"
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, http_client=http) as client:
        create = client.chat.completions.create
        how = {"model": "chat", "messages": TALK, "max_tokens": 12, "temperature": 0}
        whole = create(**how).choices[0].message.content
        with create(**how, stream=True) as chunks:
            parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(parts) == whole
    return whole
