"""What all commands of the build share: arguments, the jobs they stand for, and how errors end."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from build_scripts import job as jobs
from build_scripts import stages, storage
from build_scripts.errors import BuildError
from build_scripts.job import REPOSITORY, WORKSPACE, Job
from build_scripts.recipe import Dtype, Engine
from python_mp.model.errors import PythonMpError

CONSOLE = Console(stderr=True)
EXPECTED = BuildError, PythonMpError, OSError
SIZES = "tensor_parallel_size", "pipeline_parallel_size"


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of what every command takes: other values than those of the recipe, and another
    layout than that of config.pbtxt."""
    made = argparse.ArgumentParser(
        f"python -m build_scripts.{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--engine", choices=get_args(Engine))
    made.add_argument("--dtype", choices=get_args(Dtype))
    for size in SIZES:
        made.add_argument(f"--{size.replace('_', '-')}", type=int, metavar="N")
    made.add_argument("--source", metavar="S", help="package:NAME, a folder, hub:..., make:FILE.py")
    made.add_argument("--repository", type=Path, default=REPOSITORY, metavar="DIR")
    made.add_argument("--workspace", type=Path, default=WORKSPACE, metavar="DIR")
    return made


def load(model: str, options: argparse.Namespace) -> Job:
    """The job for `model` with the command's overrides."""
    repository, workspace = options.repository.resolve(), options.workspace.resolve()
    return jobs.load(model, repository, overrides(options), workspace, sizes(options))


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """What the command says instead of the recipe, as the recipe has it."""
    said = {key: value for key in ("engine", "dtype") if (value := getattr(options, key))}
    if options.source:
        here = Path(options.source).expanduser()
        said["source"] = str(here.resolve()) if here.is_dir() else options.source
    return said


def sizes(options: argparse.Namespace) -> dict[str, int]:
    """What it says instead of config.pbtxt."""
    return {size: value for size in SIZES if (value := getattr(options, size)) is not None}


def progress() -> Progress:
    """Bars on a terminal. Elsewhere each stage leaves a line when it is done."""
    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=CONSOLE,
        disable=not CONSOLE.is_terminal,
    )


def ending(command: Callable[[], int]) -> int:
    """The exit code of `command`; what users can mend is one red sentence."""
    try:
        return command()
    except EXPECTED as error:
        CONSOLE.print(f"build: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130


def main(stage: str, arguments: list[str] | None = None) -> int:
    """`python -m build_scripts.STAGE MODEL [overrides]`: what leads up to the stage, and it."""
    made = parser(stage, f"Run what leads up to the stage `{stage}`, and it.")
    made.add_argument("model")
    options = made.parse_args(arguments)
    return ending(lambda: _run(load(options.model, options), stage))


def _run(job: Job, stage: str) -> int:
    steps = stages.plan(job)
    if stage not in steps:
        raise BuildError(f"{job.name} has no stage {stage}; it has {', '.join(steps)}")
    with progress() as shown, locked(job):
        stages.ensure(job, steps, stage, shown)
    print(steps[stage].folder)
    return 0


def locked(job: Job) -> Any:
    """Keeps other builds of the model waiting, and cleans up after those that were killed."""
    folder = job.workspace / job.model
    folder.mkdir(parents=True, exist_ok=True)
    waiting = f"{job.model}: another build of it is running; this one waits"
    return storage.locked(folder, lambda: CONSOLE.print(waiting, markup=False))
