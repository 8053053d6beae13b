"""What a process calls, and faults in its calls, by strace; see strace(1), TAMPERING."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ATTACH_SECONDS = 20.0
FOLLOW = ("-f", "-b", "execve")
"""Threads too, but what it starts is left alone from its execve on."""
_LINE = re.compile(r"(?:\d+ +)?(\w+)\(")  # No thread without -f.

# Python makes these calls again at once. If strace let go in the middle of one, which is likely
# then, it would fail with ENOSYS; so the cause ends by itself before.
_TRIED_AGAIN = {"EINTR": 200, "EAGAIN": 200}


@contextmanager
def attached(pid: int, *options: str, program: str = "strace") -> Iterator[None]:
    """Within it strace holds the process."""
    command = [program, *options, "-p", str(pid)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert strace.stderr is not None
    try:
        line = strace.stderr.readline()
        if "attached" not in line:
            raise OSError(f"strace may not trace here: {line.strip()}")
        yield
    finally:
        strace.terminate()
        try:
            strace.communicate(timeout=_ATTACH_SECONDS)
        except subprocess.TimeoutExpired:
            # It waits for a parent that the kernel keeps until its child execs, which strace has
            # stopped. Once strace is gone, both go on.
            strace.kill()
            strace.communicate()


def inject(call: str, error: str, when: int = 0) -> list[str]:
    """Options that let every `call` fail, or each thread's `when`-th only."""
    if not when and error in _TRIED_AGAIN:
        count = f":when=1..{_TRIED_AGAIN[error]}"
    else:
        count = f":when={when}" if when else ""
    return ["-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error={error}{count}"]


def check(program: str, pid: int) -> str:
    """Why the system does not let the program trace that process; empty if it does."""
    try:
        with attached(pid, "-o", "/dev/null", program=program):
            return ""
    except OSError as error:
        return str(error)


def record(file: Path) -> list[str]:
    """Options that write down all calls."""
    return ["-o", str(file), "-s", "0"]


def calls(file: Path) -> Iterator[str]:
    """Of what `record` wrote, in order."""
    for line in file.read_text(errors="replace").splitlines():
        if found := _LINE.match(line):
            yield found[1]
