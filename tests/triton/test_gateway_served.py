"""OpenAI's client before the gateway and a real Triton: the vectors are those of Triton's own
client. Conversations: tests/triton/test_chat.py."""

from __future__ import annotations

import os
import signal
import socket
from urllib.request import urlopen

import numpy as np
import openai
import psutil
import pytest

from server.process.launch import TritonServer
from tests.support.calls import Client
from tests.support.command import Command, command
from tests.support.gateways import gateway
from tests.support.processes import until
from tests.support.python_models import ECHO
from tests.triton.conftest import AddModel


def running(served: Command) -> int | None:
    """The gateway's process id once it answers."""
    try:
        urlopen(served.endpoints.openai_url.replace("/v1", "/health"), timeout=5).close()
    except OSError:
        return None
    children = psutil.Process(served.process.pid).children()
    return next(each.pid for each in children if "gateway" in each.cmdline())


def test_the_server_starts_it_again_and_ends_it(add_model: AddModel) -> None:
    with command(add_model("identity", ECHO), "--openai") as served:
        served.wait_ready()
        assert served.endpoints.openai_url in served.output
        until(lambda: running(served) is not None)
        first = running(served)
        assert first
        os.kill(first, signal.SIGKILL)
        until(lambda: running(served) not in (None, first))
        code, output = served.end(signal.SIGTERM)
    assert code == 0
    assert "the gateway ended with status -9; starting it again" in output
    with socket.create_server(("127.0.0.1", served.endpoints.openai)):
        pass


def test_embeddings(server: TritonServer) -> None:
    texts = [f"Text number {number}." for number in range(70)]  # More than a request may have.
    url, admin = server.endpoints.grpc_url, server.settings.token
    with gateway(url, admin_token=admin) as served, served.client() as client:
        assert "embed" in {model.id for model in client.models.list()}
        answer = client.embeddings.create(model="embed", input=texts)
        short = client.embeddings.create(model="embed", input=texts[0], dimensions=8)
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model="embed", input="a", dimensions=10_000)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="embed_encoder", input="a")
    with Client(server.endpoints) as triton:
        wanted = triton.embed(texts[:64])
    found = np.array([each.embedding for each in answer.data])
    np.testing.assert_allclose(found[:64], wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(short.data[0].embedding, wanted[0, :8], rtol=0, atol=1e-5)
    assert answer.usage.prompt_tokens >= len(texts) * 5
    assert refused.value.param == "dimensions"
