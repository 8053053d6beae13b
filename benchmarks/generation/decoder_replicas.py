"""`chat_decoder` as the model repository has it: its checkpoint, and replicas in this process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import Progress

from build_scripts import artifact, fetch, job, stages
from build_scripts.job import Job
from python_mp.front.local import Local, served
from python_mp.model.config import ModelConfig
from python_mp.model.config_json import parse
from tests.support.streams import Parts

from .random_prompts import Prompt

MODEL = "chat_decoder"
LIMIT = 300.0
"""Seconds for any answer."""


def checkpoint() -> Path:
    """transformers' folder that the model was made of."""
    return fetch.read(_built(1)).folder


def weights_nbytes() -> int:
    return sum(file.stat().st_size for file in checkpoint().glob("*.safetensors"))


@contextmanager
def decoder(tensor_parallel: int = 1, **parameters: Any) -> Iterator[Local]:
    """A replica with these parameters in the place of config.pbtxt's."""
    with ExitStack() as stack:
        folder, runtime = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in "12")
        config = _config(_built(tensor_parallel), folder, parameters)
        yield stack.enter_context(served(config, runtime))


class Timed(Parts):
    """A stream's answer, and when its parts came, by `perf_counter`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = perf_counter()
        self.moments: list[float] = []

    def part(self, outputs: Any) -> None:
        self.moments.append(perf_counter())
        super().part(outputs)

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.moments[0] - self.asked

    def gaps(self, begin: float = 0.0, end: float = float("inf")) -> list[float]:
        """Seconds between its parts, of those that came between these moments."""
        moments = [moment for moment in self.moments if begin <= moment <= end]
        return [b - a for a, b in pairwise(moments)]


def ask(replica: Local, prompts: Sequence[Prompt], max_tokens: int) -> list[Timed]:
    """All at once, greedy, whatever ends a text."""
    answers = [Timed() for _ in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        replica.stream(prompt, answer, max_tokens=max_tokens, ignore_eos=True)
    return answers


def answered(replica: Local, prompts: Sequence[Prompt], max_tokens: int) -> list[Timed]:
    answers = ask(replica, prompts, max_tokens)
    for answer in answers:
        answer.done.result(LIMIT)
    return answers


def rate(answers: Sequence[Timed]) -> float:
    """Tokens a second, from the first submission to the last token."""
    seconds = max(each.moments[-1] for each in answers) - min(each.asked for each in answers)
    return sum(len(each.ids) for each in answers) / seconds


def _built(tensor_parallel: int) -> Job:
    made = job.load(MODEL, sizes={"tensor_parallel_size": tensor_parallel})
    with Progress(console=Console(stderr=True)) as progress:
        artifact.build(made, progress, publishing=False)
    return made


def _config(made: Job, folder: Path, parameters: dict[str, Any]) -> ModelConfig:
    steps = stages.plan(made)
    found = steps[stages.artifact_stage(steps)].folder
    config = made.served_from(found, folder / MODEL)
    text, *rest = config.source
    raw = json.loads(text)
    raw["parameters"] |= {key: {"string_value": str(value)} for key, value in parameters.items()}
    return parse(json.dumps(raw), *rest)
