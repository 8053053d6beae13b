"""Decoders split over real ranks, behind the front: what streams get, though a rank is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import decoding
from tests.support.configs import decoder_config
from tests.support.processes import until
from tests.support.replicas import LIMIT, Served, counted, pids, served
from tests.support.streams import Parts

NEW = 40


def answers(replica: Served, prompts: list[list[int]]) -> list[Parts]:
    """Of each prompt the likeliest tokens, then drawn ones."""
    found = [Parts() for _ in range(2 * len(prompts))]
    for n, each in enumerate(found):
        how: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": n} if n % 2 else {}
        replica.stream(prompts[n // 2], each, max_tokens=NEW, ignore_eos=True, logprobs=2, **how)
    return found


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_streams_survive_a_rank(tmp_path: Path, tp: int, pp: int) -> None:
    model = decoding.model("qwen3")
    model.save_pretrained(tmp_path / "1")
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "kv_cache_blocks": 24}
    said = {"engine": "torch", "context": 128, "vocabulary": 99, "max_batch_tokens": 32}
    prompts = [each.prompt for each in decoding.asked(model, 6, 50, 1)]
    with served(decoder_config(tmp_path, **said, **sizes), tmp_path) as replica:
        calm = [each.done.result(LIMIT) for each in answers(replica, prompts)]
        stirred = answers(replica, prompts)
        until(lambda: sum(len(each.ids) for each in stirred) > NEW * len(prompts))
        os.kill(pids(replica)[1], signal.SIGKILL)
        assert [each.done.result(LIMIT) for each in stirred] == calm
        assert counted(replica, "restarts_total") == [1]
        for prompt, ids, parts in zip(prompts, calm[::2], stirred[::2], strict=True):
            assert_likeliest(model, prompt, ids, parts.joined("LOGPROBS"))


@torch.inference_mode()
def assert_likeliest(model: Any, prompt: list[int], ids: list[int], logprobs: Any) -> None:
    """As the model itself says in one piece, each of all before it; ties are either's."""
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert (logits.log_softmax(-1).amax(1) - chosen).max() < decoding.NEAR
    torch.testing.assert_close(torch.tensor(logprobs), chosen, atol=2e-5, rtol=0.0)
