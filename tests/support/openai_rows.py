"""The table of docs/openai.md, and the request of each of its rows."""

from __future__ import annotations

import json
from typing import Any

from gateway.silence import Limits
from server.process.installation import PROJECT
from tests.support.gateways import Gateway

GOOD: dict[str, dict[str, Any]] = {
    "chat": {"model": "talk", "messages": [{"role": "user", "content": "a"}]},
    "completions": {"model": "talk", "prompt": "a"},
    "embeddings": {"model": "vectors", "input": "a"},
    "rerank": {"model": "judge", "query": "a", "documents": ["a"]},
}
PATHS = {"chat": "/v1/chat/completions", "another path": "/v1/another"}
KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "InternalServerError",
    504: "InternalServerError",
}
"""What OpenAI's clients raise, by status; for all others it is their base."""


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
SETTINGS: dict[str, dict[str, Any]] = {
    "no token, or another, where `GATEWAY_TOKEN` is set": {"token": "a-token"},
    "a gateway without Triton's `ADMIN_TOKEN`": {},
    "Triton is not there; `Retry-After`": {},
    "a Triton that says nothing for `TRITON_SECONDS`; `Retry-After`": {"limits": Limits(0.2)},
    "a model that says nothing for `ANSWER_SECONDS`": {"limits": Limits(answer=0.2)},
}
"""The others, and the arguments of such a gateway."""


def set_up(other: Gateway, said: str) -> None:
    """Its Triton, as the row has it."""
    other.triton.is_open = "ADMIN_TOKEN" not in said
    other.triton.is_frozen = "`TRITON_SECONDS`" in said
    other.triton.is_mute = "`ANSWER_SECONDS`" in said
    if "not there" in said:
        other.run(other.stop_triton())


def rows() -> list[list[str]]:
    lines = (PROJECT / "docs" / "openai.md").read_text().splitlines()
    table = lines[lines.index("| asked | with | status | type | code | param |") + 2 :]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


def body(asked: str, said: str) -> Any:
    """Of the request; bytes go as they are, and None is a GET."""
    change = WORDS[said] if said in WORDS else json.loads(said.strip("`"))
    return GOOD[asked] | change if isinstance(change, dict) else change


def expect(row: list[str], answer: tuple[int, Any, dict[str, str]]) -> None:
    """Asserts that this is what the row says."""
    status, content, headers = answer
    error = content["error"]
    found = [str(status), error["type"], error["code"], error["param"] or ""]
    assert found == row[2:], error["message"]
    assert error["message"]
    assert ("retry-after" in headers) == ("Retry-After" in row[1])
