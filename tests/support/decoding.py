"""Sequences in one running batch, whose steps are cut at random, and what transformers generates of
them one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from python_mp.model.config import ModelConfig
from python_mp.sharding.families.generation import Decoder
from python_mp.sharding.families.task import Task
from python_mp.sharding.kv_pages import BLOCK
from python_mp.sharding.running import KvCache, Running
from python_mp.sharding.shard import Shard
from python_mp.sharding.weights import Tensors
from tests.support.configs import decoder_config
from tests.support.families import FAMILIES, Family
from tests.support.peers import Peer, Peers, together
from tests.support.tiny_models import tiny

CPU = torch.device("cpu")
CONTEXT, VOCABULARY = 120, 99
NEAR = 1e-5
"""Of the reference's two best logits: closer ones may change places."""


def causal(name: str, positions: int = 128) -> Family:
    """Its class with logits."""
    family = FAMILIES[name]
    key = "n_positions" if name == "gpt2" else "max_position_embeddings"
    ending = "LMHeadModel" if name == "gpt2" else "ForCausalLM"
    stem = family.model.removesuffix("TextModel").removesuffix("Model")
    tied = {} if name in ("phi", "gpt_neox", "mistral") else {"tie_word_embeddings": True}
    values = {**family.values, **tied, key: positions}
    return Family(f"{stem}{ending}", family.config, values, family.exact)


@dataclass
class Asked:
    """A prompt and what transformers generates of it, with the gap between its two best logits."""

    prompt: list[int]
    wanted: list[int]
    gaps: list[float]
    done: list[int] = field(default_factory=list)
    cached: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.done]


@torch.inference_mode()
def asked(model: Any, count: int, longest: int, most: int) -> list[Asked]:
    """The first is of one token, and the second as long as may be."""
    numbers, found = random.Random(1), list[Asked]()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    for n in range(count):
        length = (1, longest)[n] if n < 2 else numbers.randint(1, longest)
        prompt = [numbers.randint(3, 98) for _ in range(length)]
        new = numbers.randint(1, most)
        said = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.cat(said.logits).topk(2).values
        gaps = (best[:, 0] - best[:, 1]).tolist()
        found.append(Asked(prompt, said.sequences[0, length:].tolist(), gaps))
    return found


class Steps(Protocol):
    def step(self, tensors: dict[str, Any]) -> torch.Tensor:
        """Logits, or log-probabilities, of the sequences that are sampled."""


class Ranks:
    """All ranks of a model, in this process."""

    def __init__(
        self,
        model: Any,
        size: int,
        stages: int,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device = CPU,
    ) -> None:
        self._device = device
        self._size, self._peers = size, [Peers(size) for _ in range(stages)]
        self._caches = [[KvCache() for _ in range(size)] for _ in range(stages)]
        given = Tensors({n: t.to(device) for n, t in model.state_dict().items()}, dtype)

        def make(rank: int, stage: int) -> Decoder:
            peer = Peer(self._peers[stage], rank)
            shard = Shard(rank, size, stage, stages, dtype, device, Path(), {}, peer, given)
            made = Decoder(shard, type(model.config).from_dict(model.config.to_dict()))
            made.take_kernels()  # As engine torch does.
            return made

        self._stages = [[make(rank, stage) for rank in range(size)] for stage in range(stages)]
        self.step({"INPUT_IDS": [0, 0], "cu_seqlens": [0, 2], "sampled": [0]})
        for cache_ in (each for stage in self._caches for each in stage):
            cache_.open(blocks, device)

    @property
    def decoders(self) -> list[Decoder]:
        return [decoder for stage in self._stages for decoder in stage]

    def capture(self, most: int) -> bool:
        """Whether all later steps of up to so many rows are replayed; for one rank a stage."""
        every = [decoder.capture(most) for decoder in self.decoders]
        assert every == every[:1] * len(every)
        for count in map(len, every[0]):
            self.step(
                {
                    "INPUT_IDS": [n % 2 for n in range(count)],
                    "cu_seqlens": range(count + 1),
                    "context_lengths": range(CONTEXT - count + 1, CONTEXT + 1),
                    "block_table": [[0] * -(-CONTEXT // BLOCK)] * count,
                    "sampled": [0],
                }
            )
        return all(decoder.encoder.is_replayed for decoder in self.decoders)

    @torch.inference_mode()
    def step(self, tensors: dict[str, Any]) -> torch.Tensor:
        """Logits of the sequences that are sampled."""
        arrays = {name: torch.tensor(value).int().numpy() for name, value in tensors.items()}
        hidden: Any = None
        for decoders, caches in zip(self._stages, self._caches, strict=True):

            def rank(
                n: int, _: Peers, ds: Any = decoders, cs: Any = caches, h: Any = hidden
            ) -> Any:
                with torch.inference_mode():
                    return ds[n](Running(arrays, self._device, cs[n]), h)

            results = together(self._size, rank)
            hidden = results[0]
        found: torch.Tensor = hidden["LOGITS"]
        return found.cpu()


def run(ranks: Steps, every: Sequence[Asked], blocks: int, seed: int, chunk: int) -> int:
    """All in one running batch; how often another token than the reference's was as good.

    Raises:
        AssertionError: it was not.
    """
    numbers = random.Random(seed)
    free = numbers.sample(range(blocks), blocks)
    waiting, running, ties = list(every), list[Asked](), 0
    while waiting or running:
        while waiting and (not running or numbers.random() < 0.5):
            running.append(waiting.pop())
        rows = {}
        for n, each in enumerate(running):
            left = len(each.ids) - each.cached
            if numbers.random() < 0.8:
                rows[n] = left if left == 1 else numbers.randint(1, min(left, chunk))
        if not rows:
            continue
        for n, count in rows.items():
            while len(running[n].blocks) * BLOCK < running[n].cached + count:
                running[n].blocks.append(free.pop())
        stepped = [running[n] for n in rows]
        logits = ranks.step(_step(stepped, list(rows.values())))
        for each, count in zip(stepped, rows.values(), strict=True):
            each.cached += count
        sampled = [each for each in stepped if each.cached == len(each.ids)]
        for each, row in zip(sampled, logits, strict=True):
            ties += _take(each, row)
        for each in [each for each in running if len(each.done) == len(each.wanted)]:
            free += each.blocks
            running.remove(each)
    assert sorted(free) == list(range(blocks))
    return ties


def _step(sequences: Sequence[Asked], rows: Sequence[int]) -> dict[str, Any]:
    width = max(len(each.blocks) for each in sequences)
    ends = zip(sequences, rows, strict=True)
    ids = [each.ids[each.cached : each.cached + count] for each, count in ends]
    contexts = [each.cached + count for each, count in zip(sequences, rows, strict=True)]
    return {
        "INPUT_IDS": list(chain.from_iterable(ids)),
        "cu_seqlens": [0, *torch.tensor(rows).cumsum(0).tolist()],
        "context_lengths": contexts,
        "block_table": [each.blocks + [-1] * (width - len(each.blocks)) for each in sequences],
        "sampled": [n for n, each in enumerate(sequences) if contexts[n] == len(each.ids)],
    }


def _take(each: Asked, logits: torch.Tensor) -> int:
    place = len(each.done)
    wanted, found = each.wanted[place], int(logits.argmax())
    each.done.append(wanted)
    if found == wanted:
        return 0
    gap = float(logits[found] - logits[wanted])
    assert each.gaps[place] < NEAR, (
        f"token {place} is {found}, not {wanted}: {gap}, {each.gaps[place]}"
    )
    return 1


def tiny_causal(model_type: str) -> Any:
    """Of any model_type that transformers has."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny(model_type).make().config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * 0.2 if parameter.dim() > 1 else parameter + noise * 0.1)
    return model


def served_config(folder: Path, name: str, **more: Any) -> ModelConfig:
    """Of its model in the folder, as a build leaves it."""
    made = decoder_config(folder, engine="torch", max_batch_tokens=32, **more)
    whole = model(name)
    whole.config.save_pretrained(made.folder)
    weights = {key: value.clone() for key, value in whole.state_dict().items()}
    save_file(weights, made.folder / "model.safetensors")  # By transformers' names.
    Task("generate", context_length=CONTEXT, vocabulary=VOCABULARY).write(made.folder)
    return made


@cache
def model(name: str, positions: int = 128) -> Any:
    return causal(name, positions).make()
