"""Make the folders of models of a checkpoint, ready to be built and served.

SOURCE is a folder, package:NAME, or hub:OWNER/NAME[@REVISION]. The ensemble is called NAME, its
steps NAME_ and their job; nothing that is there already is changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from build_scripts import command, job
from build_scripts.new import checkpoint_found, findings, folders, ranks_found, recipe_text
from build_scripts.new.checkpoint_found import Found
from build_scripts.new.pbtxt_text import Layout, Template
from build_scripts.places import REPOSITORY
from build_scripts.quiet import quiet
from python_mp.model.parameters import MOST_RANKS, TASKS

USUAL_TOKENS, MOST_TOKENS, MOST_IMAGES = 4096, 32768, 64
"""Of a batch: without need of more, and however long texts may be."""


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
    made.add_argument("--tensor-parallel-size", type=_count, default=1, metavar="N")
    made.add_argument("--pipeline-parallel-size", type=_count, default=1, metavar="N")
    made.add_argument("--replicas", type=_count, default=1, metavar="N")
    made.add_argument("--gpu", action="store_true", help="a GPU for each rank, from 0 on")
    made.add_argument("--repository", type=Path, default=REPOSITORY, metavar="DIR")
    return made


def _count(value: str) -> int:
    number = int(value)
    if not 1 <= number <= MOST_RANKS:
        raise argparse.ArgumentTypeError(f"must be 1 to {MOST_RANKS}")
    return number


def _make(options: argparse.Namespace) -> int:
    name, repository = options.name, options.repository.resolve()
    folders.check(repository, [name])
    layout = Layout(
        options.tensor_parallel_size, options.pipeline_parallel_size, options.replicas, options.gpu
    )
    source, folder = checkpoint_found.located(options.source)
    with quiet():
        found = checkpoint_found.read(source, folder, options.task)
        template = _template(name, found, layout)
        configs = template.configs()
        folders.check(repository, list(configs))
        with folders.appearing(repository, list(configs)) as building:
            folders.write(building, _files(template, found, configs))
            made = job.load(f"{name}_encoder", building)
            sizes = ranks_found.nbytes(made, folder)
    findings.show(found, template, sizes, repository)
    return 0


def _template(name: str, found: Found, layout: Layout) -> Template:
    longest = found.longest or 0
    most = MOST_IMAGES if found.takes == "image" else None
    if found.takes == "text" and longest > USUAL_TOKENS:
        most = min(longest, MOST_TOKENS)
    many = layout.world_size
    about = f"{found.architecture}, {f'split over {many} processes' if many > 1 else 'whole'}."
    return Template(name, found.kind, found.takes, found.sizes, layout, about, most)


def _files(template: Template, found: Found, configs: dict[str, str]) -> dict[str, str | bytes]:
    sizes = [1, 512, template.most_tokens or USUAL_TOKENS]
    if found.takes == "image":
        sizes = [1, 8, MOST_IMAGES]
    name = template.name
    recipe = recipe_text.text(
        name,
        found.source,
        template.steps,
        found.kind,
        found.takes,
        sizes,
        ranks_found.narrow(found.checkpoint.path),
    )
    return {
        **{f"{model}/config.pbtxt": text for model, text in configs.items()},
        **template.warm_up_files(),
        f"{name}/recipe.toml": recipe,
        f"{name}/1/.gitkeep": "",  # Triton asks an ensemble for a version, too.
    }


if __name__ == "__main__":
    sys.exit(main())
