"""What `new` tells its user: what it has found, and what to run next."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from build_scripts.new.chain import Takes
from build_scripts.new.checkpoint_found import Found
from build_scripts.new.pbtxt_parts import Layout, Tensor
from build_scripts.places import REPOSITORY
from build_scripts.storage import megabytes
from python_mp.sharding.families.task import Kind

BATCHES = {
    "packed": "packed: texts end to end, without padding",
    "rectangles": "rectangles: texts of like lengths side by side",
    "images": "images side by side",
}
CLIENTS: Mapping[tuple[Kind, Takes], str] = {
    ("embed", "text"): 'embed --model {} "a text" "another"',
    ("rerank", "text"): 'rerank --model {} "a query" "a text" "another"',
    ("classify", "text"): 'classify --model {} --texts "a text" "another"',
    ("classify", "image"): "classify --model {} FILE.png",
    ("tokens", "text"): 'tokens --model {} "a text" "another"',
    ("generate", "text"): 'chat --model {} "a question"',
}
SIZES = {
    "num_hidden_layers": "{} layers",
    "num_attention_heads": "{} heads",
    "hidden_size": "width {}",
}
"""What configs say, those of convolutions not all of it."""
Rows = Iterator[tuple[str, str]]


def of_checkpoint(found: Found) -> Rows:
    yield "source", found.source
    yield "model", f"{found.architecture} ({found.config.model_type})"
    yield "task", f"{found.kind}: {found.why}"
    if found.kind == "embed":
        yield "pooling", ", ".join(found.task.pooling)
    yield "size", ", ".join(_sizes(found))
    yield "batches", BATCHES[found.rows]


def of_module(source: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Rows:
    yield "source", source
    yield "model", "a module of your own, module.py"
    yield "inputs", ", ".join(f"{each.name} {list(each.dims)}" for each in inputs)
    yield "outputs", ", ".join(f"{each.name} {list(each.dims)}" for each in outputs)


def of_layout(layout: Layout, nbytes: Sequence[int]) -> Rows:
    place = "a GPU each" if layout.on_gpus else "the CPU"
    ranks = layout.world_size * layout.replicas
    kind = "ranks" if ranks > 1 else "rank"
    yield (
        "layout",
        (
            f"replicas {layout.replicas} x tensor {layout.tensor_parallel_size} x pipeline"
            f" {layout.pipeline_parallel_size}: {ranks} {kind} on {place}"
        ),
    )
    if nbytes:
        most = megabytes(max(nbytes))
        yield "weights", f"at most {most} a rank in float32, beside Python and torch"
        needed, there = sum(nbytes) * layout.replicas, psutil.virtual_memory().available
        if needed > there and not layout.on_gpus:
            yield "note", f"all weights are {megabytes(needed)}, and {megabytes(there)} are free"
    if layout.on_gpus:
        import torch

        if ranks > (there := torch.cuda.device_count()):
            yield "note", f"{ranks} ranks want a GPU each, and this machine has {there}"
    elif ranks > (cores := len(os.sched_getaffinity(0))):
        yield "note", f"{ranks} ranks share the {cores} cores of this machine"


def show(
    rows: Rows, models: Sequence[str], repository: Path, task: tuple[Kind, Takes] | None
) -> None:
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print(f"\nwritten to {repository}: {', '.join(models)}\nnext:")
    elsewhere = repository != REPOSITORY
    where = f" --repository {repository}" if elsewhere else ""
    console.print(f"  .venv/bin/python -m build_scripts.build {models[0]}{where}")
    server = f".venv/bin/python -m server --model-repository {repository}"
    console.print(f"  {server if elsewhere else 'make serve'}")
    if task:
        console.print(f"  .venv/bin/python -m clients.{CLIENTS[task].format(models[0])}")


def _sizes(found: Found) -> Iterator[str]:
    config = found.config
    part = getattr(config, "vision_config", config)  # of SigLIP and CLIP
    yield f"{found.parameters / 1e6:.1f} M parameters"
    for key, name in SIZES.items():
        if isinstance(size := getattr(part, key, None), int):
            yield name.format(size)
    if found.takes == "text":
        yield f"vocabulary {config.vocab_size}"
        yield f"texts of {found.longest} tokens" if found.longest else "texts of any length"
    else:
        yield f"images {' x '.join(map(str, found.sizes.image))}"
    if found.kind in ("classify", "tokens"):
        yield f"{config.num_labels} classes"
