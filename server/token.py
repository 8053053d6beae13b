"""The admin token: everything but inference, health and metadata asks for it."""

import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from server.errors import ServerError

HEADER = "triton-admin"
METADATA = f"triton-grpc-protocol-{HEADER}"
VARIABLE = "ADMIN_TOKEN"
APIS = "model-repository,model-config,shared-memory,statistics,trace,logging"
_ALLOWED = re.compile(r"[\w.~+/-]{8,256}", re.ASCII)  # Triton cuts its option at : and =
_ARGUMENTS = slice(47, 49)  # fields arg_start and arg_end of /proc/PID/stat


def choose(file: Path | None, environment: Mapping[str, str]) -> str:
    """The token in `file`, else in ADMIN_TOKEN, else a new one that nobody knows.

    Raises:
        ServerError: the file cannot be read, or the token has characters that Triton cannot take.
    """
    if file is not None:
        try:
            return _checked(file.read_text().strip(), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ServerError(f"cannot read --admin-token-file {file}: {error}") from error
    if VARIABLE in environment:
        return _checked(environment[VARIABLE], VARIABLE)
    return secrets.token_urlsafe(24)


def options(token: str) -> list[str]:
    """Options of tritonserver: both protocols want the token for APIS."""
    rule = f"{APIS}:{HEADER}={token}"
    return [f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"]


def hide(pid: int, token: str) -> bool:
    """Overwrite the token in a process's command line, which every user can read in /proc.

    To be called once the process has read its options. False where the kernel does not let us.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, end = map(int, ["pid", "name", *stat][_ARGUMENTS])
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            memory.seek(start)
            memory.write(arguments.replace(token.encode(), b"*" * len(token)))
    except (OSError, ValueError):
        return False
    return token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def same(given: str | None, token: str) -> bool:
    """Whether the token is right, in a time that does not depend on how nearly it is."""
    return given is not None and secrets.compare_digest(given.encode(), token.encode())


def _checked(token: str, source: str) -> str:
    if not _ALLOWED.fullmatch(token):
        raise ServerError(f"{source} must hold 8 to 256 of the characters A-Z a-z 0-9 _ . ~ + / -")
    return token
