"""What `new` tells its user: what it has found, and what to run next."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from build_scripts.new.checkpoint_found import Found
from build_scripts.new.pbtxt_text import Layout, Template
from build_scripts.places import REPOSITORY
from build_scripts.storage import megabytes

BATCHES = {
    "packed": "packed: texts end to end, without padding",
    "rectangles": "rectangles: texts of like lengths side by side",
    "images": "images side by side",
}


def show(found: Found, template: Template, nbytes: Sequence[int], repository: Path) -> None:
    table = Table.grid(padding=(0, 2))
    for key, value in _rows(found, template, nbytes):
        table.add_row(key, value)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    names = ", ".join(f"{template.name}_{step.job}" for step in template.steps)
    console.print(f"\n{repository}: {template.name}, {names}\n\nNext:")
    for line in _next(template, repository):
        console.print(f"  {line}", markup=False)


def _rows(found: Found, template: Template, nbytes: Sequence[int]) -> Iterator[tuple[str, str]]:
    config, layout = found.config, template.layout
    yield "source", found.source
    yield "model", f"{found.architecture} ({config.model_type})"
    yield "task", f"{found.kind}: {found.why}"
    if found.kind == "embed":
        yield "pooling", ", ".join(found.task.pooling)
    yield "size", ", ".join(_sizes(found))
    yield "batches", BATCHES[found.rows]
    place = "GPUs" if layout.on_gpus else "CPU"
    yield (
        "layout",
        (
            f"replicas {layout.replicas} x tensor {layout.tensor_parallel_size} x pipeline"
            f" {layout.pipeline_parallel_size}, on the {place}"
        ),
    )
    yield "weights", f"at most {megabytes(max(nbytes))} a rank in float32, beside Python and torch"
    for warning in _warnings(layout):
        yield "note", warning


def _sizes(found: Found) -> Iterator[str]:
    config = found.config
    yield f"{config.num_hidden_layers} layers"
    yield f"{config.num_attention_heads} heads"
    yield f"width {config.hidden_size}"
    if found.takes == "text":
        yield f"vocabulary {config.vocab_size}"
        yield f"texts of {found.longest} tokens" if found.longest else "texts of any length"
    else:
        yield f"images {' x '.join(map(str, found.sizes.image))}"
    if found.kind in ("classify", "tokens"):
        yield f"{config.num_labels} classes"


def _warnings(layout: Layout) -> Iterator[str]:
    ranks = layout.world_size * layout.replicas
    if layout.on_gpus:
        import torch

        if ranks > (there := torch.cuda.device_count()):
            yield f"{ranks} ranks want a GPU each, and this machine has {there}"
    elif ranks > (cores := len(os.sched_getaffinity(0))):
        yield f"{ranks} ranks share the {cores} cores of this machine"


def _next(template: Template, repository: Path) -> Iterator[str]:
    python = ".venv/bin/python"
    where = "" if repository == REPOSITORY else f" --repository {repository}"
    yield f"{python} -m build_scripts.build {template.name}{where}"
    yield "make serve" if not where else f"{python} -m server --model-repository {repository}"
