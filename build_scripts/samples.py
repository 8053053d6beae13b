"""Requests to judge engines by, and others to calibrate them with, as clients would send them.

What lies in the model's folder comes first, then what the file has that makes the weights:

    samples.py     samples(folder) -> requests, labels or None
                   texts(folder) -> texts, for an encoder
                   calibration(folder) -> requests (for an encoder that has texts: texts)
                   reference(folder, requests) -> the outputs that are right
    texts.txt      for an encoder: one text a line

`folder` is the checkpoint's. Without any of it encoders get English sentences, or pairs of them, or
pictures through their image processor; a module numbers from a normal distribution. No request of
the gate is calibrated with: where there is no `calibration`, some of the samples are kept for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from build_scripts import (
    checkpoint_images,
    checkpoint_tokenizer,
    code,
    decoder_checkpoint,
    fetch,
    sentences,
    sizes,
)
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.continuations import TOKENS
from build_scripts.errors import BuildError
from build_scripts.job import SAMPLES, Job
from python_mp.model import request as requests
from python_mp.model.batch import Batch
from python_mp.model.config import ModelConfig
from python_mp.model.request import Array

Request = dict[str, Array]
TEXTS = "texts.txt"
FOR_CALIBRATION = 4
"""Of samples that must do for both, at most one in so many is calibrated with."""


@dataclass(frozen=True)
class Samples:
    """`requests[i]` has every input [1, ...]; `labels[i]` is the right class, if that is known."""

    requests: list[Request]
    labels: list[int] | None = None

    def __post_init__(self) -> None:
        if not self.requests:
            raise BuildError("there are no samples: a build needs some to judge an engine by")


def judged(job: Job) -> Samples:
    """Those of the gate, always the same ones: of what the model serves, since config.pbtxt may
    allow less than a sample has."""
    samples, _ = _both(job)
    found = [_read(job.config, request).size for request in samples.requests]
    fitting = [n for n, size in enumerate(found) if size.fits(job.config.parameters)]
    if not fitting:
        raise BuildError(
            f"{job.model} serves none of its samples: each {found[0].excess(job.config.parameters)}"
            f" in {job.folder / 'config.pbtxt'}"
        )
    labels = [samples.labels[n] for n in fitting] if samples.labels is not None else None
    return Samples([samples.requests[n] for n in fitting], labels)


def calibration(job: Job) -> list[Request]:
    """Those to calibrate with, always the same ones; none of the gate's.

    Raises:
        BuildError: there are none besides.
    """
    samples, found = _both(job)
    known = {_bytes(request) for request in samples.requests}
    rest = [request for request in found if _bytes(request) not in known]
    if not rest:
        raise BuildError(
            f"{job.model} has no samples to calibrate with that it is not judged by: add some to"
            f" {job.folder / SAMPLES} (samples, or calibration), or lower accuracy.samples"
        )
    return rest[: job.recipe.calibration.samples]


def has_reference(job: Job) -> bool:
    """Whether the model brings its own."""
    return _hook(job, "reference") is not None


def reference(job: Job, requests: Sequence[Request]) -> list[Request] | None:
    """The right outputs by the model's own `reference`; None where it has none."""
    hook = _hook(job, "reference")
    if hook is None:
        return None
    outputs = [dict(each) for each in hook(fetch.read(job).folder, requests)]
    names = {spec.name for spec in job.config.outputs}
    if len(outputs) != len(requests) or any(each.keys() != names for each in outputs):
        raise BuildError(
            f"{job.model}: reference(folder, requests) must return, for each of the"
            f" {len(requests)} requests, {', '.join(sorted(names))}"
        )
    return [{name: np.asarray(a, np.float32) for name, a in each.items()} for each in outputs]


def packed(config: ModelConfig, requests: Sequence[Request]) -> Request:
    """The requests as one batch, as an engine is given it."""
    (found,) = batches(config, requests, len(requests))
    return found


def batches(config: ModelConfig, requests: Sequence[Request], most: int) -> list[Request]:
    """The same of up to `most` requests each, of one shape."""
    read = [_read(config, request) for request in requests]
    alike = [tuple(each) for _, each in groupby(read, key=lambda each: each.signature)]
    cut = (each[at : at + most] for each in alike for at in range(0, len(each), most))
    packed = (Batch(0, each).pack(config) for each in cut)
    return [{name: np.concatenate(rows) for name, rows in each.items()} for each in packed]


def _read(config: ModelConfig, request: Request) -> requests.Request:
    return requests.read_request(request, config, _NoAnswer())


def _both(job: Job) -> tuple[Samples, list[Request]]:
    """Of the gate, and candidates to calibrate with."""
    if job.recipe.family == "transformers" and not _hook(job, "samples"):
        return _of_a_checkpoint(job)
    many, more = job.recipe.accuracy.samples, job.recipe.calibration.samples
    hook, folder = _hook(job, "samples"), fetch.read(job).folder
    if hook is None:
        return Samples(_noise(job, many, 0)), _noise(job, more, 1)
    made, labels = hook(folder)
    count, rest = _divided(job, len(made))
    samples = Samples(made[:count], labels[:count] if labels is not None else None)
    own = _hook(job, "calibration")
    return samples, list(own(folder)) if own else made[count : count + rest]


def _of_a_checkpoint(job: Job) -> tuple[Samples, list[Request]]:
    checkpoint = fetch.checkpoint(job)
    if job.config.has_ragged_input:
        return _of_texts(job, checkpoint)
    many, more = job.recipe.accuracy.samples, job.recipe.calibration.samples
    if not checkpoint.file(checkpoint_images.FILE).is_file():
        return Samples(_noise(job, many, 0)), _noise(job, more, 1)
    return Samples(_pictures(checkpoint, many, 0)), _pictures(checkpoint, more, 1)


def _of_texts(job: Job, checkpoint: Checkpoint) -> tuple[Samples, list[Request]]:
    folder = checkpoint.path
    many, more = job.recipe.accuracy.samples, job.recipe.calibration.samples
    texts = _own_texts(job, folder)
    if texts is None:
        ours = sentences.sentences(many)
        theirs = sentences.others(ours, more)
    else:
        count, rest = _divided(job, len(texts))
        ours, theirs = texts[:count], texts[count : count + rest]
        if own := _hook(job, "calibration"):
            theirs = list(own(folder))
    return Samples(_encoded(job, checkpoint, ours)), _encoded(job, checkpoint, theirs)


def _own_texts(job: Job, folder: Path) -> list[str] | None:
    """Each once; None where the model brings none."""
    if hook := _hook(job, "texts"):
        return list(dict.fromkeys(hook(folder)))
    if TEXTS not in job.beside:
        return None
    lines = job.beside[TEXTS].read_text().splitlines()
    return list(dict.fromkeys(line for line in lines if line.strip()))


def _divided(job: Job, there: int) -> tuple[int, int]:
    """How many of the samples are judged by, and how many are left to calibrate with."""
    if _hook(job, "calibration"):
        return min(job.recipe.accuracy.samples, there), 0
    kept = min(job.recipe.calibration.samples, there // FOR_CALIBRATION)
    return min(job.recipe.accuracy.samples, there - kept), kept


def _encoded(job: Job, checkpoint: Checkpoint, texts: Sequence[str]) -> list[Request]:
    """For pairs each text follows the one before, as a query; of what has both, every second."""
    wanted = {spec.name for spec in job.config.inputs}
    given: list[Any] = [checkpoint.settings.usual_prompt + text for text in texts]
    if checkpoint.takes_pairs:
        every = 1 if checkpoint.cross_encoder else 2
        before = given[-1:] + given[:-1]
        given[::every] = zip(before[::every], given[::every], strict=True)
    encoded = checkpoint_tokenizer.load(checkpoint).encode_batch(given)
    if checkpoint.task == "generate":
        for each in encoded:
            each.truncate(max(1, decoder_checkpoint.task(checkpoint).context_length - TOKENS))
    all_of_it = [
        {"INPUT_IDS": [e.ids], "TOKEN_TYPE_IDS": [e.type_ids], "LENGTHS": [[len(e.ids)]]}
        for e in encoded
    ]
    return [
        {name: np.array(rows, np.int32) for name, rows in each.items() if name in wanted}
        for each in all_of_it
    ]


def _pictures(checkpoint: Checkpoint, count: int, seed: int) -> list[Request]:
    processor = checkpoint_images.load(checkpoint)
    shown = checkpoint_images.pictures(count, seed)
    return [{"PIXEL_VALUES": processor.pixels("a sample", each)[None]} for each in shown]


def _hook(job: Job, name: str) -> Any:
    """A function of the model's samples.py, or of the module that makes its weights."""
    return next((found for each in _makers(job) if (found := getattr(each, name, None))), None)


def _makers(job: Job) -> list[ModuleType]:
    theirs = [code.load(fetch.maker(job))] if job.recipe.source.startswith("make:") else []
    path = job.folder / SAMPLES
    if not path.exists():
        return theirs
    module = code.load(path)
    return [module] if hasattr(module, "samples") else [module, *theirs]


def _noise(job: Job, count: int, seed: int) -> list[Request]:
    random = np.random.default_rng(seed)
    inputs = [each for each in job.config.inputs if each.name in job.config.batch_inputs]
    return [
        {each.name: _numbers(random, (1, *sizes.of(job, each, n)), each.dtype) for each in inputs}
        for n in range(count)
    ]


def _numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """From a normal distribution; where they are whole, none is below zero."""
    found: Array = random.standard_normal(shape)
    return (found if np.dtype(dtype).kind == "f" else np.abs(found)).astype(dtype)


def _bytes(request: Request) -> tuple[tuple[str, bytes], ...]:
    return tuple(sorted((name, array.tobytes()) for name, array in request.items()))


class _NoAnswer:
    """Where no client waits."""

    keeps = False

    def send(self, outputs: object) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def is_cancelled(self) -> bool:
        return False
