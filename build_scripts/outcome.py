"""What came of a build: a row or a line for each engine, the worst samples, and a file for CI."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from build_scripts import storage
from build_scripts.job import Job

ACCURACY = (
    ("verified", "verified: {}"),
    ("cosine_min", "cosine >= {:.6f}"),
    ("max_error", "error <= {:.1e}"),
    ("top1_agreement_min", "top-1 {:.1%}"),
    ("accuracy_min", "labels {:.1%}"),
)


@dataclass(frozen=True)
class Result:
    """One model, engine, dtype and layout.

    Attributes:
        status: "published", "kept", "verified" or "failed".
        seconds: that stages have run; 0 where everything was there.
        size: of the files that are served, in bytes.
        error: the sentence, where it failed.
        worst: the samples furthest from the reference, where it is not accurate enough.
    """

    model: str
    engine: str
    dtype: str
    layout: str
    status: str
    seconds: float = 0
    size: int = 0
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    worst: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, job: Job, status: str, **values: Any) -> "Result":
        if job.recipe.is_step:
            return cls(job.model, "", "", "", status, **values)
        recipe = job.recipe
        return cls(job.model, recipe.engine, recipe.dtype, str(job.layout), status, **values)


def show(results: Iterable[Result], console: Console) -> None:
    """The summary, then for each engine that is not accurate enough its worst samples."""
    if not console.is_terminal:
        console = Console(file=console.file, width=160)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("model", "engine", "size", "build", "p50", "rate", "against reference", ""):
        table.add_column(column, no_wrap=column == "size")
    for each in results:
        table.add_row(*_row(each), style="red" if each.status == "failed" else None)
    console.print(table)
    _remark(results, console)


def show_briefly(results: Iterable[Result], console: Console) -> None:
    """A line for each that was not there already."""
    news = [each for each in results if each.status != "kept"]
    for each in news:
        model, *facts, status = filter(None, _row(each))
        console.print(f"{model}: {status}; {', '.join(facts)}", markup=False, soft_wrap=True)
    _remark(news, console)


def _remark(results: Iterable[Result], console: Console) -> None:
    for each in results:
        if each.worst:
            console.print(_worst(each))
        if why := each.accuracy.get("why"):
            said = f"build: {each.model} is not verified: {why}"
            console.print(said, style="yellow", markup=False, soft_wrap=True)
        if each.error:
            said = f"build: {each.model}: {each.error}"
            console.print(said, style="red", markup=False, soft_wrap=True)


def _row(result: Result) -> tuple[str, ...]:
    built = f"{result.seconds:.1f} s" if result.seconds else "kept"
    return (
        result.model,
        f"{result.engine} {result.dtype} {result.layout}".strip(),
        storage.megabytes(result.size) if result.size else "",
        "" if result.status == "failed" else built,
        _figure(result.latency, "p50_ms", "{:.1f} ms"),
        _figure(result.latency, "samples_per_second", "{:.0f}/s")
        or _figure(result.latency, "tokens_per_second", "{:.0f} tokens/s"),
        ", ".join(filter(None, (_figure(result.accuracy, *each) for each in ACCURACY))),
        result.status,
    )


def _figure(values: Mapping[str, Any], key: str, form: str) -> str:
    return form.format(values[key]) if key in values else ""


def write(results: Iterable[Result], path: Path) -> None:
    """All of it as JSON."""
    storage.write_json(path, [asdict(each) for each in results])


def _worst(result: Result) -> Table:
    name = f"{result.model} {result.engine} {result.dtype} {result.layout}"
    table = Table(title=f"{name}: the worst samples", box=box.SIMPLE_HEAD)
    for column in result.worst[0]:
        table.add_column(column)
    for sample in result.worst:
        table.add_row(*(f"{value:.6g}" for value in sample.values()))
    return table
