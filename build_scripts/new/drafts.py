"""What is about to be written: an ensemble for a checkpoint, or one model for a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from build_scripts import checkpoint_folder, storage
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.new import (
    checkpoint_found,
    findings,
    module_text,
    ranks_found,
    recipe_text,
)
from build_scripts.new.chain import Takes
from build_scripts.new.ensemble_text import Template
from build_scripts.new.pbtxt_parts import UNTUNED, Layout, Tuning
from python_mp.sharding.families.task import Kind

USUAL_TOKENS, MOST_TOKENS, MOST_IMAGES = 4096, 32768, 64
"""Of a batch: without need of more, and however long texts may be."""
STEP_TOKENS = 256
"""Of a step of generation."""


@dataclass(frozen=True)
class Draft:
    """
    Attributes:
        model: the one with ranks.
        files: by their paths in the repository.
        rows: what was found, as lines of a table.
        task: of an ensemble, and what it takes.
        weigh: bytes of weights of each rank; BuildError where the layout cannot be.
    """

    model: str
    files: Mapping[str, str | bytes]
    rows: Sequence[tuple[str, str]]
    weigh: Callable[[Job], list[int]]
    task: tuple[Kind, Takes] | None = None

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(path.split("/")[0] for path in self.files))


def of_checkpoint(
    name: str,
    source: str,
    folder: Path,
    layout: Layout,
    wanted: Kind | None,
    tuning: Tuning = UNTUNED,
) -> Draft:
    """Raises BuildError where it cannot be served, or not for the task that is wanted."""
    found = checkpoint_found.read(source, folder, wanted)
    most = MOST_IMAGES if found.takes == "image" else None
    if found.kind == "generate":
        most = STEP_TOKENS
    elif (found.longest or 0) > USUAL_TOKENS:
        most = min(found.longest or 0, MOST_TOKENS)
    ranks = layout.world_size
    about = f"{found.architecture}, {f'split over {ranks} processes' if ranks > 1 else 'whole'}."
    given = tuning.max_batch_tokens or most
    template = Template(name, found.kind, found.takes, found.sizes, layout, about, given, tuning)
    largest = most or USUAL_TOKENS
    sizes = [1, 8, MOST_IMAGES] if found.takes == "image" else [1, min(512, largest), largest]
    narrow = ranks_found.narrow(folder)
    recipe = recipe_text.text(
        name, source, template.steps, found.kind, found.takes, sizes, narrow, layout.on_gpus, tuning
    )
    return Draft(
        f"{name}_{template.ranked}",
        {**template.files(), f"{name}/recipe.toml": recipe},
        [*findings.of_checkpoint(found)],
        partial(ranks_found.of_checkpoint, folder=folder, task=found.task),
        (found.kind, found.takes),
    )


def of_module(
    name: str,
    source: str,
    folder: Path,
    layout: Layout,
    inputs: Iterable[str],
    outputs: Iterable[str],
) -> Draft:
    """
    Args:
        inputs, outputs: NAME:TYPE:DIMS each.

    Raises:
        BuildError: some are missing, or the folder has no weights.
    """
    ins, outs = (list(map(module_text.tensor, each)) for each in (inputs, outputs))
    if not ins or not outs:
        raise BuildError(
            f"{folder} has a module.py, whose tensors must be said: --input NAME:TYPE:DIMS and"
            " --output NAME:TYPE:DIMS, as in --input X:FP32:3,32,32; forward(x) is given X"
        )
    checkpoint_folder.tensors(folder)
    template = module_text.ModuleTemplate(name, source, ins, outs, layout)
    beside = {
        f"{name}/{path}": file.read_bytes()
        for path, file in storage.files(folder).items()
        if path.endswith(".py") and not any(part.startswith(".") for part in path.split("/"))
    }
    return Draft(
        name,
        {**template.files(), **beside},
        [*findings.of_module(source, ins, outs)],
        partial(ranks_found.of_module, folder=folder),
    )
