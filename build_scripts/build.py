"""Build models by their recipes: fetch, shard, export, quantise, compile, verify, publish.

Stages whose inputs did not change are not run again. The models of one recipe are published
together, or, where one of them fails, not at all; other recipes are not held up by it. Only what
recipe.toml and config.pbtxt say is published: what the command says instead is built and verified.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.progress import Progress

from build_scripts import check, command, outcome, recipe_file
from build_scripts.artifact import Artifact
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.outcome import Result
from build_scripts.recipe import Variant

NOT_PUBLISHED = (
    "Not published, as it is not what recipe.toml and config.pbtxt say. To serve it, write into"
    " them what the command says, and build again:"
)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return command.ending(lambda: _check(options) if options.check else _build(options))


def _parser() -> argparse.ArgumentParser:
    made = command.parser("build", __doc__)
    made.add_argument(
        "models", nargs="*", metavar="NAME", help="of recipes, or of models in them; default: all"
    )
    made.add_argument(
        "--except", action="append", default=[], dest="left_out", metavar="NAME", help="of a recipe"
    )
    made.add_argument("--variants", action="store_true", help="make the recipes' variants, too")
    made.add_argument("--no-publish", action="store_true", help="build and verify only")
    made.add_argument("--without-gpu", action="store_true", help="leave out what needs a GPU")
    made.add_argument("--check", action="store_true", help="build nothing; say what does not fit")
    made.add_argument("--brief", action="store_true", help="no table, and nothing of what is kept")
    made.add_argument("--report", type=Path, metavar="FILE.json")
    return made


def _build(options: argparse.Namespace) -> int:
    said = command.overrides(options) | command.sizes(options)
    publishing = not (options.no_publish or said)
    results: list[Result] = []
    with command.progress() as progress:
        for models in _recipes(options):
            results += _together(models, options, progress, publishing=publishing)
    (outcome.show_briefly if options.brief else outcome.show)(results, command.CONSOLE)
    if said and not options.no_publish:
        lines = (f"  {key} = {value}" for key, value in said.items())
        command.CONSOLE.print("\n".join([NOT_PUBLISHED, *lines]), markup=False, soft_wrap=True)
    if options.report:
        outcome.write(results, options.report)
    return int(any(result.status == "failed" for result in results))


def _recipes(options: argparse.Namespace) -> list[list[str]]:
    """The models of each recipe that is asked for, by its name or by that of one of its models."""
    found = recipe_file.every_recipe(options.repository.resolve())
    if not found:
        raise BuildError(f"No model in {options.repository} has a recipe.toml")
    known = {path.parent.name for path in found} | {
        name for names in found.values() for name in names
    }
    for name in (*options.models, *options.left_out):
        if name not in known:
            raise BuildError(
                f"No recipe in {options.repository} makes '{name}'; there are"
                f" {', '.join(sorted(known))}"
            )
    asked, left_out = set(options.models or known), set(options.left_out)
    return [
        names
        for path, names in found.items()
        if (one := {path.parent.name, *names}) & asked and not one & left_out
    ]


def _together(
    models: list[str], options: argparse.Namespace, progress: Progress, *, publishing: bool
) -> Iterator[Result]:
    """Of the models of one recipe, then of their variants."""
    made: dict[str, Job] = {}
    results: dict[str, Result] = {}
    for model in models:
        try:
            made[model] = command.load(model, options)
        except BuildError as error:
            results[model] = Result(model, "", "", "", "failed", error=str(error))
    if options.without_gpu and any(job.needs_gpu for job in made.values()):
        yield from (Result.of(job, "left out") for job in made.values())
        return
    artifacts = {
        model: Artifact(job, progress, publishing=publishing) for model, job in made.items()
    }
    for model, artifact in artifacts.items():
        results[model] = _caught(artifact.job, artifact.verify)
    if publishing and all(result.status != "failed" for result in results.values()):
        for model, artifact in artifacts.items():
            results[model] = _caught(artifact.job, partial(artifact.publish, results[model]))
    yield from (results[model] for model in models)
    for job in made.values() if options.variants else ():
        yield from (_variant(job, variant, progress) for variant in job.recipe.variants)


def _variant(job: Job, variant: Variant, progress: Progress) -> Result:
    try:
        other = job.variant(variant)
    except BuildError as error:
        said = job.recipe.variant(variant)
        return Result(job.model, said.engine, said.dtype, "", "failed", error=str(error))
    return _caught(other, Artifact(other, progress, publishing=False).verify)


def _caught(job: Job, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except command.EXPECTED as error:
        return Result.of(job, "failed", error=str(error))
    except Exception as error:  # a mistake of ours, or of a library: others are built all the same
        command.CONSOLE.print_exception()
        return Result.of(job, "failed", error=f"{type(error).__name__}: {error}")


def _check(options: argparse.Namespace) -> int:
    code = 0
    for model in (name for names in _recipes(options) for name in names):
        try:
            misfits = check.misfits(command.load(model, options))
        except BuildError as error:
            misfits = [str(error)]
        print(f"{model}: {'; '.join(misfits) or 'ok'}")
        code |= bool(misfits)
    return code


if __name__ == "__main__":
    sys.exit(main())
