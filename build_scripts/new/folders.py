"""The folders of an ensemble: all appear in the repository, or none."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from build_scripts import recipe_file
from build_scripts.errors import BuildError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def check(repository: Path, names: list[str]) -> None:
    """Raises BuildError unless models of these names can be added."""
    first = names[0]
    if not NAME.fullmatch(first):
        raise BuildError(
            f"{first!r} is no name of a model: it has letters, digits, _ and -, at most 100, and"
            " begins with a letter or a digit"
        )
    for name in names:
        if (repository / name).exists():
            raise BuildError(
                f"{repository / name} is there already, and is left as it is: take another name"
                f" than {first}, or remove it"
            )
    if taken := set(names) & set(recipe_file.every_model(repository)):
        raise BuildError(f"a recipe in {repository} makes {sorted(taken)[0]} already")


@contextmanager
def appearing(repository: Path, names: list[str]) -> Iterator[Path]:
    """A repository to fill with these models; they move into `repository` when the block ends well.

    The last to come is the first name, the ensemble: what is there without it is served by nobody.
    """
    repository.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=repository))
    moved: list[Path] = []
    try:
        yield building
        check(repository, names)
        for name in reversed(names):
            (building / name).rename(repository / name)
            moved.append(repository / name)
    except BaseException:
        for each in moved:
            shutil.rmtree(each)
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
