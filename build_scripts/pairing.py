"""The steps of an ensemble that exchange token ids must be of one tokenizer, by their recipes."""

from rich.progress import Progress

from build_scripts import command, fetch, recipe, stages
from build_scripts import job as jobs
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp import ensembles


def check(job: Job, beside: dict[str, Job], progress: Progress) -> None:
    """Compares what the recipes of the job's neighbours would serve with what it would.

    Args:
        beside: jobs of the same command, which may differ from their recipes.

    Raises:
        BuildError: another tokenizer comes of a neighbour's source.
    """
    mine = None
    for ensemble, name in ensembles.neighbours(job.folder):
        if not (job.folder.parent / name / recipe.NAME).is_file():
            continue
        other = beside.get(name) or jobs.load(name, job.folder.parent, workspace=job.workspace)
        theirs = _tokenizer(other, progress)
        mine = mine or (_tokenizer(job, progress) if theirs else None)
        if theirs and mine and theirs != mine:
            raise BuildError(
                f"{job.model} is made of {job.recipe.source}, {name} of {other.recipe.source}, and"
                f" their tokenizers differ: the ensemble {ensemble} would answer nonsense. Name one"
                f" source in {job.folder / recipe.NAME} and {other.folder / recipe.NAME}"
            )


def _tokenizer(job: Job, progress: Progress) -> str | None:
    """The hash of the tokenizer that comes of the job's source; None where it has none."""
    if job.recipe.family == "module":
        return None
    with command.locked(job):
        stages.ensure(job, stages.plan(job), "fetch", progress)
    return fetch.read(job).tokenizer
