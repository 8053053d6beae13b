"""Names that Triton can take. It starts each stub by a line that a shell reads, in which neither
spaces nor anything else is quoted."""

import re
from pathlib import Path

from server.errors import ServerError

_READ_BY_A_SHELL = re.compile(r"[\s\x00-\x1f\x7f|&;<>()$`\\\"'*?\[\]#~!{}^]")
USUAL = Path("/tmp")


def is_odd(name: str) -> bool:
    """Whether a shell would take it for something else."""
    return _READ_BY_A_SHELL.search(name) is not None


def plain(path: Path, link: Path) -> Path:
    """`path`, or a new `link` to it where its name is odd."""
    if not is_odd(str(path)):
        return path
    link.symlink_to(path.absolute())
    return link


def plain_folder(temporary: Path) -> Path:
    """The folder for temporary files, or the usual one where its name is odd.

    Raises:
        ServerError: neither will do.
    """
    if not is_odd(str(temporary)):
        return temporary
    if not USUAL.is_dir():
        raise ServerError(
            f"TMPDIR={temporary} holds characters that a shell reads; set another one"
        )
    return USUAL
