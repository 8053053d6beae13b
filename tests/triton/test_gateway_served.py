"""OpenAI's client before the gateway and a real Triton: the vectors are those of Triton's own
client. Conversations: tests/triton/test_chat.py."""

from __future__ import annotations

import numpy as np
import openai
import pytest

from server.process.launch import TritonServer
from tests.support.calls import Client
from tests.support.gateways import gateway


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
