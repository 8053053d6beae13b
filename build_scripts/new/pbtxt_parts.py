"""Parts of a config.pbtxt, as lines of text with comments."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

WARM_TOKENS = 8
"""Of a dim that is free, to warm up with."""


@dataclass(frozen=True)
class Tensor:
    """As config.pbtxt has it: `dims` are those of one request without its batch dimension."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    is_optional: bool = False
    is_ragged: bool = False

    def __str__(self) -> str:
        words = [f'name: "{self.name}" data_type: {self.data_type} dims: {numbers(self.dims)}']
        words += ["optional: true"] * self.is_optional
        words += ["allow_ragged_batch: true"] * self.is_ragged
        return f"{{ {' '.join(words)} }}"


@dataclass(frozen=True)
class Layout:
    """Of a model's ranks, on CPUs or on the first GPUs."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    replicas: int = 1
    on_gpus: bool = False

    @property
    def world_size(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size


@dataclass(frozen=True)
class Tuning:
    """What a planner may change beside the layout; as it is, everything is as it comes.

    Attributes:
        threads: of each rank; 0 for its share of the cores.
        max_batch_tokens: None for what the model asks for.
        queue_delay_us: how long Triton's batcher waits for more requests, in microseconds.
    """

    engine: str = "torch"
    dtype: str = "float32"
    threads: int = 0
    max_batch_tokens: int | None = None
    queue_delay_us: int = 0

    def batching(self) -> str:
        delay = (
            f" max_queue_delay_microseconds: {self.queue_delay_us} " if self.queue_delay_us else ""
        )
        return f"dynamic_batching {{{delay}}}"

    def parameters(self) -> Iterator[str]:
        if self.threads:
            yield "# Of each rank, as `python -m build_scripts.plan` has measured."
            yield parameter("threads_per_rank", self.threads)


UNTUNED = Tuning()


def text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def head(model: str, key: str, value: str, rows: int, comment: str = "") -> Iterator[str]:
    if comment:
        yield f"# {comment}"
    yield from (f'name: "{model}"', f'{key}: "{value}"', f"max_batch_size: {rows}", "")


def tensors(key: str, found: Sequence[Tensor], comment: str = "") -> Iterator[str]:
    if len(found) == 1 and not comment:
        yield f"{key} [ {found[0]} ]"
        return
    yield f"{key} ["
    if comment:
        yield f"  # {comment}"
    yield from _with_commas([[f"  {each}"] for each in found])
    yield "]"


def instances(layout: Layout) -> Iterator[str]:
    """One group of active instances, and one of passive ones where a replica has several ranks."""
    ranks, every = layout.world_size, range(layout.world_size * layout.replicas)
    groups = {"lead": list(every[::ranks]), "shard": [gpu for gpu in every if gpu % ranks]}
    if groups["shard"]:
        yield "# A rank lives with each instance: active ones answer, passive ones hold shards."
    lines = []
    for name, gpus in groups.items():
        where = f"count: {len(gpus)} kind: KIND_CPU"
        if layout.on_gpus:
            where = f"count: 1 kind: KIND_GPU gpus: {numbers(gpus)}"
        passive = " passive: true" if name == "shard" else ""
        lines += [[f'  {{ name: "{name}" {where}{passive} }}']] if gpus else []
    yield from ("instance_group [", *_with_commas(lines), "]", "")
    for size in ("tensor_parallel_size", "pipeline_parallel_size"):
        yield parameter(size, getattr(layout, size))


def parameter(key: str, value: object) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def warm_up(inputs: Iterable[Tensor], files: Collection[str] = ()) -> Iterator[str]:
    """
    Args:
        files: names of inputs whose data lies in warmup/; all others are zeros.
    """
    yield from (
        "",
        "# Run before the model counts as ready: no client pays for what comes only once.",
    )
    yield from ("model_warmup [ {", '  name: "first"', "  batch_size: 1")
    for each in inputs:
        if each.is_optional:
            continue
        dims = numbers(WARM_TOKENS if dim < 0 else dim for dim in each.dims)
        data = (
            f'input_data_file: "{each.name.lower()}"' if each.name in files else "zero_data: true"
        )
        yield f'  inputs {{ key: "{each.name}" value {{'
        yield f"    data_type: {each.data_type} dims: {dims} {data}"
        yield "  } }"
    yield "} ]"


def ensemble(parts: Iterable[Iterable[str]]) -> Iterator[str]:
    """
    Args:
        parts: for each step its lines.
    """
    steps = [["    {", *(f"      {line}" for line in part), "    }"] for part in parts]
    yield from ("ensemble_scheduling {", "  step [", *_with_commas(steps), "  ]", "}")


def numbers(values: Iterable[int]) -> str:
    return f"[ {', '.join(map(str, values))} ]"


def _with_commas(entries: Sequence[list[str]]) -> Iterator[str]:
    for index, entry in enumerate(entries):
        *lines, last = entry
        yield from (*lines, f"{last}," if index < len(entries) - 1 else last)
