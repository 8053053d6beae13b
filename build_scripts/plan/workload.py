"""The requests that candidates are measured with: of given lengths, or the model's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from build_scripts import fetch, samples
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.model.request import Array

Request = dict[str, Array]
LENGTHS = Path(__file__).with_name("lengths.txt")
COUNT = 256
"""Requests that are sent in turn."""


def requests(job: Job, file: Path | None) -> list[Request]:
    """Of the file's lengths, filled with the tokens of the model's samples; of what has no lengths
    the samples themselves. The stage `fetch` has been run.

    Raises:
        BuildError: the file makes no sense, or the model has no lengths.
    """
    found = samples.judged(job).requests
    if job.recipe.family == "transformers" and job.config.has_ragged_input:
        return _cut(job, found, drawn(read(file or LENGTHS), fetch.longest_text(job)))
    if file:
        raise BuildError(f"{job.model} has no texts, so leave --lengths out: its samples are sent")
    return found[:COUNT]


def read(file: Path) -> dict[int, float]:
    """How often each length is asked for. A line is LENGTH, or LENGTH and COUNT; what follows a #
    is a comment.

    Raises:
        BuildError: it cannot be read, or is empty.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{file} cannot be read: {error}") from None
    found: dict[int, float] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or not all(word.isascii() and word.isdecimal() for word in words):
            raise BuildError(f"{file}, line {number}: {line!r:.60} is not LENGTH or LENGTH COUNT")
        length, count = (*map(int, words), 1)[:2]
        found[length] = found.get(length, 0) + count
    if not sum(count for length, count in found.items() if length):
        raise BuildError(f"{file} has no lengths: write one a line, in tokens")
    return {length: count for length, count in found.items() if length and count}


def drawn(lengths: dict[int, float], longest: int | None) -> Sequence[int]:
    """As many as are sent, always the same ones; none is longer than the model reads."""
    shares = np.array([*lengths.values()])
    random = np.random.default_rng(0)
    found = random.choice([*lengths], COUNT, p=shares / shares.sum())
    return [int(each) for each in (found if longest is None else np.minimum(found, longest))]


def _cut(job: Job, found: Sequence[Request], lengths: Sequence[int]) -> list[Request]:
    """Requests of these lengths out of the samples' tokens, end to end."""
    ragged = [spec.name for spec in job.config.inputs if spec.ragged]
    pool = {name: np.concatenate([each[name] for each in found], 1) for name in ragged}
    size, at, made = pool[ragged[0]].shape[1], 0, []
    for length in lengths:
        where = np.arange(at, at + length) % size
        cut = {name: pool[name][:, where] for name in ragged}
        if said := job.config.parameters.lengths:
            cut[said] = np.array([[length]], np.int32)
        made.append(cut)
        at += length
    return made
