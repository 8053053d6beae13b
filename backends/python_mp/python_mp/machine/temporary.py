"""Where temporary files go."""

import os
from pathlib import Path

_VARIABLES = ("TMPDIR", "TEMP", "TMP")
USUAL = "/tmp"


def temporary_folder() -> Path:
    """What the environment names, else /tmp; whether it can be written shows when it is used.

    Python's own choice (tempfile.gettempdir) tries several folders by writing a file. On a faulty
    machine that file stays, and the choice falls on the working directory.
    """
    named = next(filter(None, map(os.environ.get, _VARIABLES)), USUAL)
    return Path(named).absolute()
