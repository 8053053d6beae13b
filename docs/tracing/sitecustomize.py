"""Python runs this as it starts, in each process of the server that `docs/request_path.py` starts.

While the file `on` is there, each call of a function of the project is written down as JSON, one a
line: the time, which is the machine's; process, thread, what the process is called, its command;
and the project's functions on the stack, innermost first. A forked rank keeps the forkserver's.
"""

import json
import os
import sys
import threading
import time
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

FOLDER = Path(os.environ["REQUEST_PATH"])
PROJECT = Path(__file__).resolve().parents[2]


@cache
def place(code: CodeType) -> tuple[str, str] | None:
    """(file, function) of what is the project's own, and has a name."""
    file = Path(code.co_filename).resolve()
    inside = file.is_relative_to(PROJECT) and ".venv" not in file.parts
    named = "<" not in code.co_qualname and "<" not in code.co_filename
    return (str(file.relative_to(PROJECT)), code.co_qualname) if inside and named else None


def stack(frame: FrameType | None) -> list[tuple[str, str]]:
    found = []
    while frame is not None:
        if at := place(frame.f_code):
            found.append(at)
        frame = frame.f_back
    return found


def note(frame: FrameType, _event: str, _argument: object) -> None:
    if not place(frame.f_code) or not (FOLDER / "on").exists():
        return
    name = Path("/proc/self/comm").read_text().strip()
    process = [
        os.getpid(),
        threading.current_thread().name,
        name,
        Path("/proc/self/cmdline").read_text(),
    ]
    line = json.dumps([time.monotonic_ns(), *process, stack(frame)]) + "\n"
    with (FOLDER / "calls").open("a") as calls:  # One write a line, so processes may share it.
        calls.write(line)


sys.settrace(note)
threading.settrace(note)
