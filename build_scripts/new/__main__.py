"""Make the folders of models of a checkpoint, ready to be built and served.

SOURCE is a folder, package:NAME, or hub:OWNER/NAME[@REVISION]. The ensemble is called NAME, its
steps NAME_ and their job; nothing that is there already is changed. A folder with a module.py, a
torch module of your own, becomes one model NAME, whose inputs and outputs are to be said.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

from build_scripts import command
from build_scripts import job as jobs
from build_scripts.job import MODULE
from build_scripts.new import checkpoint_found, drafts, findings, folders
from build_scripts.new.pbtxt_parts import Layout
from build_scripts.places import REPOSITORY
from build_scripts.quiet import quiet
from python_mp.model.parameters import MOST_RANKS, TASKS


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return command.ending(lambda: _make(options))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m build_scripts.new",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("name", metavar="NAME")
    made.add_argument("source", metavar="SOURCE")
    made.add_argument("--task", choices=TASKS, help="default: what the checkpoint is for")
    for size in command.SIZES:
        made.add_argument(f"--{size.replace('_', '-')}", type=_count, default=1, metavar="N")
    made.add_argument("--replicas", type=_count, default=1, metavar="N")
    made.add_argument("--gpu", action="store_true", help="a GPU for each rank, from 0 on")
    for end in ("input", "output"):
        made.add_argument(
            f"--{end}",
            action="append",
            default=[],
            metavar="NAME:TYPE:DIMS",
            help="of a module of your own, as X:FP32:3,32,32; may be given again",
        )
    made.add_argument("--repository", type=Path, default=REPOSITORY, metavar="DIR")
    return made


def _count(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= MOST_RANKS:
        raise argparse.ArgumentTypeError(f"must be 1 to {MOST_RANKS}")
    return int(value)


def _make(options: argparse.Namespace) -> int:
    name, repository = options.name, options.repository.resolve()
    folders.check(repository, [name])
    layout = Layout(
        options.tensor_parallel_size, options.pipeline_parallel_size, options.replicas, options.gpu
    )
    source, folder = checkpoint_found.located(options.source, options.task)
    with quiet():
        if (folder / MODULE).is_file():
            draft = drafts.of_module(name, source, folder, layout, options.input, options.output)
        else:
            draft = drafts.of_checkpoint(name, source, folder, layout, options.task)
        with folders.appearing(repository, draft.models) as building:
            folders.write(building, draft.files)
            nbytes = draft.weigh(jobs.load(draft.model, building))
    rows = chain(draft.rows, findings.of_layout(layout, nbytes))
    findings.show(rows, draft.models, repository, draft.task)
    return 0


if __name__ == "__main__":
    sys.exit(main())
