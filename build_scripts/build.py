"""Build models by their recipes: fetch, shard, export, quantise, compile, verify, publish.

Stages whose inputs did not change are not run again. Models that fail leave the others, and the
repository, as they are. What the command says instead of the recipe is built and verified; it is
published with --save only, which writes it into the recipe: else the next build would undo it.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from build_scripts import check, command, pairing, publish, report, stages
from build_scripts import job as jobs
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.publish import Steps
from build_scripts.report import Result

NOT_SAVED = (
    "Not published, as the recipe says otherwise: with --save it is, and the recipe follows."
)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return command.ending(lambda: _check(options) if options.check else _build(options))


def _parser() -> argparse.ArgumentParser:
    made = command.parser("build", __doc__)
    made.add_argument("models", nargs="*", metavar="MODEL", help="default: all with a recipe")
    made.add_argument("--variants", action="store_true", help="make the recipes' variants, too")
    made.add_argument("--save", action="store_true", help="write overrides into the recipe")
    made.add_argument("--no-publish", action="store_true", help="build and verify only")
    made.add_argument("--check", action="store_true", help="build nothing; say what does not fit")
    made.add_argument("--report", type=Path, metavar="FILE.json")
    return made


def _build(options: argparse.Namespace) -> int:
    results = []
    with command.progress() as progress:
        beside: dict[str, Job] = {}
        for model in _models(options):
            with suppress(BuildError):  # which is said in its turn
                beside[model] = command.load(model, options)
        for model in _models(options):
            results += list(_results(model, options, beside, progress))
    report.show(results, command.CONSOLE)
    if command.overrides(options) and not (options.save or options.no_publish):
        command.CONSOLE.print(NOT_SAVED, soft_wrap=True)
    if options.report:
        report.write(results, options.report)
    return int(any(result.status == "failed" for result in results))


def _is_publishing(options: argparse.Namespace) -> bool:
    return not options.no_publish and (options.save or not command.overrides(options))


def _results(
    model: str, options: argparse.Namespace, beside: dict[str, Job], progress: Progress
) -> Iterator[Result]:
    """Of the model as its recipe says, then of its variants."""
    try:
        job = command.load(model, options)
    except BuildError as error:
        yield Result(model, "", "", "", "failed", error=str(error))
        return
    yield _result(job, progress, beside, publishing=_is_publishing(options))
    for variant in job.recipe.variants if options.variants else ():
        other = replace(job, recipe=job.recipe.variant(variant), outputs={})
        yield _result(other, progress, beside, publishing=False)


def _result(job: Job, progress: Progress, beside: dict[str, Job], *, publishing: bool) -> Result:
    try:
        return build(job, progress, beside, publishing=publishing)
    except command.EXPECTED as error:
        return Result.of(job, "failed", error=str(error))
    except Exception as error:  # a mistake of ours, or of a library: others are built all the same
        command.CONSOLE.print_exception()
        return Result.of(job, "failed", error=f"{type(error).__name__}: {error}")


def build(
    job: Job, progress: Progress, beside: dict[str, Job] | None = None, *, publishing: bool = True
) -> Result:
    """Have the job's artifact, verified and, if `publishing`, in the repository.

    Args:
        beside: jobs of other models that are built by the same command.

    Raises:
        BuildError: it cannot be done; the repository is as it was.
    """
    steps = stages.plan(job)
    if publishing:
        if found := publish.current(job, steps):
            size = sum(file["size"] for file in found.files.values())
            return Result.of(job, "kept", size=size, accuracy=found.accuracy, latency=found.latency)
        pairing.check(job, beside or {}, progress)
    with command.locked(job):
        stages.clean(job)
        seconds = _ensure(job, steps, progress, publishing)
        result = _judged(job, steps, seconds)
        if publishing and result.status == "verified":
            publish.run(job, steps, progress)
            return replace(result, status="published")
        return result


def _ensure(job: Job, steps: Steps, progress: Progress, publishing: bool) -> float:
    """Have what is asked for at the end; returns the seconds that stages have run."""
    *_, last = steps
    seconds = stages.ensure(job, steps, last, progress)
    if publishing:  # which reads these again, whatever the last one needed
        seconds += stages.ensure(job, steps, "fetch", progress)
        artifact = stages.artifact_stage(steps)
        seconds += stages.ensure(job, steps, artifact, progress, content=True)
    return seconds


def _judged(job: Job, steps: Steps, seconds: float) -> Result:
    found = publish.verdict(steps)
    measured = {"accuracy": found["accuracy"], "latency": found["latency"], "seconds": seconds}
    if not found["passed"]:
        error = f"{job.name} is not accurate enough: {'; '.join(found['misses'])}"
        return Result.of(job, "failed", error=error, worst=found["worst"], **measured)
    files = steps[stages.artifact_stage(steps)].output().values()
    return Result.of(job, "verified", size=sum(path.stat().st_size for path in files), **measured)


def _check(options: argparse.Namespace) -> int:
    code = 0
    for model in _models(options):
        try:
            misfits = check.misfits(command.load(model, options))
        except BuildError as error:
            misfits = [str(error)]
        print(f"{model}: {'; '.join(misfits) or 'ok'}")
        code |= bool(misfits)
    return code


def _models(options: argparse.Namespace) -> list[str]:
    found = options.models or jobs.models(options.repository)
    if not found:
        raise BuildError(f"No model in {options.repository} has a recipe.toml")
    return list(found)


if __name__ == "__main__":
    sys.exit(main())
