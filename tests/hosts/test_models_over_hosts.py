"""The project's models behind a real Triton, their ranks on several hosts: answers are those of one
host."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients import chat
from tests.hosts.conftest import Hosts
from tests.support import repository
from tests.support.processes import alive, until
from tests.support.repository import Layout
from tests.support.triton_over_hosts import CLIENTS, RIGHT, Served, serving

ACROSS = [Layout(1, 2, hosts=2), Layout(2, 1, hosts=2), Layout(2, 2, hosts=2)]
"""Stages apart, a stage on two hosts, and a stage of two ranks on each."""
pytestmark = pytest.mark.campaign
QUESTIONS = ["What is a kitten?", "Count from one to ten.", "Who wrote Faust?", "Say hello."]
TOKENS = 32
CHAT = "chat_across"
DRAIN_SECONDS = 60.0


@pytest.fixture
def embeds(hosts: Hosts, tmp_path: Path, layouts: list[Layout]) -> Iterator[Served]:
    repository.copy(tmp_path / "repository", "embed_tokenizer", "embed_vectors")
    for layout in layouts:
        repository.add_variant(tmp_path / "repository", layout)
    with hosts(2) as (a, b), serving(a, [b], tmp_path) as served:
        yield served


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("layouts", "requests"),
    [(ACROSS[2:], 10), (ACROSS, 100)],
    ids=["few", "all"],
)
def test_vectors_are_those_of_one_host(
    embeds: Served, layouts: list[Layout], requests: int
) -> None:
    for layout in layouts:
        with embeds.load(layout.name, requests) as found:
            pass
        assert Counter(found) == {RIGHT: CLIENTS * requests}, layout.name

    drain(embeds, layouts[0])


def drain(served: Served, layout: Layout) -> None:
    """What is in flight needs the ranks on other hosts: these stay until it is answered."""
    ranks = [pid for host in served.others for pid in served.ranks(host)]
    assert ranks
    with served.load(layout.name) as found:
        until(lambda: len(found) > CLIENTS)
        served.server.signal(signal.SIGTERM)
        assert served.server.process.wait(DRAIN_SECONDS) == 0, served.server.lines
    counts = Counter(found)
    wrong = [answer for answer in counts if answer.startswith("another answer")]
    assert not wrong
    print(counts)
    until(lambda: not any(map(alive, ranks)))
    assert all(agent.process.poll() is None for agent in served.agents.values())


@pytest.mark.timeout(300)
def test_streams_of_chat_are_those_of_one_host(hosts: Hosts, tmp_path: Path) -> None:
    """CLIENTS at a time, each question to both: the same texts, in as many parts."""
    models = tmp_path / "repository"
    repository.copy(models, "chat", "chat_prompt", "chat_decoder", "chat_text")
    repository.add_variant(models, Layout(1, 2, hosts=2), CHAT, "chat")
    with hosts(2) as (a, b), serving(a, [b], tmp_path) as served:

        def ask(model: str) -> list[tuple[str, int]]:
            def one(number: int) -> tuple[str, int]:
                with a.entered():
                    question = f"{QUESTIONS[number % len(QUESTIONS)]} " * (1 + number // 8)
                    talk = [{"role": "user", "content": question}]
                    url = served.endpoints.grpc_url
                    parts = list(chat.answer(talk, {"max_tokens": TOKENS}, model, url))
                return "".join(part.text for part in parts), parts[-1].tokens

            with ThreadPoolExecutor(CLIENTS) as pool:
                return list(pool.map(one, range(4 * CLIENTS)))

        assert ask(CHAT) == ask("chat")
