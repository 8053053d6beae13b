"""Find the engine, layout and bounds that serve a model best on this machine.

Candidates are built, verified by the recipe's gate, and measured in turns behind a Triton of their
own, under requests of given lengths. What was measured is kept: the same command goes on where the
last one ended.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from build_scripts import command, publish, recipe_file, stages, storage, triton_config
from build_scripts import job as jobs
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.places import REPOSITORY, WORKSPACE
from build_scripts.plan import candidates, elsewhere, pareto, race, saving, scatter, workload
from build_scripts.plan.candidates import Choice
from build_scripts.plan.descent import Descent
from build_scripts.plan.pareto import Row
from build_scripts.plan.race import Race, Records, Rejected
from build_scripts.plan.stand import SECONDS, Stand
from build_scripts.plan.workload import Request
from build_scripts.quiet import quiet
from clients.connection import positive

CONSOLE = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
IN_FLIGHT = 32


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return command.ending(lambda: _plan(options))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m build_scripts.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("model", metavar="MODEL", help="with ranks, or the ensemble of its recipe")
    add("--latency-ms", type=_above_zero, default=math.inf, metavar="L", help="bound of p99")
    add("--concurrency", type=positive, metavar="C", help=f"requests in flight ({IN_FLIGHT})")
    add("--budget-minutes", type=_above_zero, default=10.0, metavar="M")
    add("--lengths", type=Path, metavar="FILE", help="LENGTH or LENGTH COUNT a line, in tokens")
    add("--save", action="store_true", help="write the choice into recipe.toml and config.pbtxt")
    add(
        "--machine",
        metavar="WORDS",
        help="predict for others: gpus=8,nvlink,hosts=2 or cores=16,hosts=4",
    )
    add("--repository", type=Path, default=REPOSITORY, metavar="DIR")
    add("--workspace", type=Path, default=WORKSPACE, metavar="DIR")
    return made


def _above_zero(value: str) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _plan(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + 60 * options.budget_minutes
    with command.progress() as progress, quiet():
        job = with_ranks(options.model, options.repository.resolve(), options.workspace.resolve())
        stages.ensure(job, stages.plan(job), "fetch", progress)
        requests = workload.requests(job, options.lengths)
        if not options.machine:
            search, start, best = _measure(job, requests, options, deadline, progress)
    if options.machine:
        elsewhere.show(job, options.machine, requests, options.concurrency)
        return 0
    _show(job, search, start, best, options)
    _tell(job, start, best, options)
    return 0


def _measure(
    job: Job,
    requests: list[Request],
    options: argparse.Namespace,
    deadline: float,
    progress: Progress,
) -> tuple[Descent, Choice, Choice]:
    """The search, what there is now, and what is best."""
    start, in_flight = candidates.present(job), options.concurrency or IN_FLIGHT
    try:
        with Stand(job, start, requests, in_flight, progress) as stand:
            search = _search(job, stand, requests, options, deadline, progress)
            return search, start, search.best(start)
    except Rejected as rejected:
        raise BuildError(f"{job.model} as it is now: {rejected}") from None


def with_ranks(model: str, repository: Path, workspace: Path) -> Job:
    """The model of that name, or the one with ranks of the recipe of that name.

    Raises:
        BuildError: there is none, or it generates text.
    """
    recipe = repository / model / recipe_file.NAME
    names = recipe_file.models(recipe) if recipe.is_file() else [model]
    found = [jobs.load(name, repository, workspace=workspace) for name in names]
    ranked = [job for job in found if not job.recipe.is_step]
    if not ranked:
        raise BuildError(f"{model} has no ranks, which is what is planned: name another model")
    job = ranked[0]
    if job.task == "generate":
        raise BuildError(f"{job.model} generates text; only models of one answer can be planned")
    return job


def _search(
    job: Job,
    stand: Stand,
    requests: list[Request],
    options: argparse.Namespace,
    deadline: float,
    progress: Progress,
) -> Descent:
    devices, task = candidates.devices(job), progress.add_task("candidates", total=None)

    def tell(choice: Choice, left: int) -> None:
        done = len(search.results)
        progress.update(task, description=str(choice), completed=done, total=done + left + 1)

    records = Records(options.workspace / job.model / "plan.jsonl")
    context = _context(job, requests, stand.concurrency, devices)
    contest = Race(stand, records, context, options.latency_ms)
    is_late = partial(_is_past, deadline)
    search = Descent(contest, candidates.axes(job, devices), is_late, tell)
    return search


def _is_past(deadline: float) -> bool:
    return time.monotonic() > deadline


def _context(job: Job, requests: list[Request], in_flight: int, devices: int) -> list[object]:
    """What measurements depend on beside the candidate."""
    sent = [{name: array.tolist() for name, array in each.items()} for each in requests]
    built = publish.artifact_key(job, stages.plan(job))
    said = storage.digest((job.folder / triton_config.NAME).read_text())
    return [storage.digest(sent), built, said, in_flight, devices, SECONDS]


def _show(
    job: Job, search: Descent, start: Choice, best: Choice, options: argparse.Namespace
) -> None:
    seen = race.seen(search.results, start)
    rows = [Row(choice, race.usual(loads)) for choice, loads in seen if loads]
    rows += [Row(each.challenger, None, each.why) for each in search.results if each.why]
    notes = {e.challenger: f"{e.gain:.2f} of the best then" for e in search.results if e.pairs}
    notes |= {start: "now", best: "chosen"} if best != start else {best: "now, and chosen"}
    CONSOLE.print(pareto.table(rows, notes))
    picture = options.workspace / job.model / "plan.svg"
    title = f"{job.model}, {options.concurrency or IN_FLIGHT} in flight"
    picture.write_text(scatter.svg(rows, {start: "now", best: "chosen"}, title))
    CONSOLE.print(f"written to {picture}")
    if not search.is_whole:
        CONSOLE.print("The time was up before all was tried: the same command goes on from here.")
    chosen = next((row.load for row in rows if row.choice == best), None)
    if chosen and chosen.p99_ms > options.latency_ms:
        CONSOLE.print(f"No candidate answered within {options.latency_ms:g} ms (p99).")


def _tell(job: Job, start: Choice, best: Choice, options: argparse.Namespace) -> None:
    """What to do with the choice."""
    if best == start:
        CONSOLE.print("Nothing that was tried is better than what there is.")
        return
    if options.save and (written := saving.save(job, best)):
        CONSOLE.print(*(f"written: {path}" for path in written), sep="\n")
        CONSOLE.print(f"Then: python -m build_scripts.build {job.home.name}")
        return
    if options.save:
        CONSOLE.print("Not written, as somebody has edited the files. To paste:")
    CONSOLE.print(*saving.lines(job, best), sep="\n", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
