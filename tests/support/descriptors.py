"""Open files of this process, by what they are: to compare before and after.

gRPC, ONNX Runtime and others open and close files from threads of their own whenever they like, in
every process that has ever used them. So a test looks at what is ours alone, or runs in a process
of its own.
"""

import gc
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.processes import ENVIRONMENT

_SEQPACKET = "0005"
_OURS = re.compile(r"/memfd:python_mp.*|seqpacket|anon_inode:\[pidfd\]")


def opened() -> Counter[str]:
    """All of them."""
    gc.collect()  # a mapping's descriptor goes with its last view
    table = map(str.split, Path("/proc/net/unix").read_text().splitlines()[1:])
    unix = {f"socket:[{line[6]}]": line[4] for line in table}
    found = Counter[str]()
    for path in Path("/proc/self/fd").iterdir():
        try:
            name = str(path.readlink())
        except FileNotFoundError:  # the listing's own, or closed meanwhile
            continue
        kind = "seqpacket" if unix.get(name) == _SEQPACKET else re.sub(r"socket:.*", "socket", name)
        found[kind] += 1
    return found


def ours() -> Counter[str]:
    """What only the code of this project opens."""
    return Counter({kind: n for kind, n in opened().items() if _OURS.fullmatch(kind)})


def alone(body: Callable[..., None], *arguments: str | Path) -> None:
    """Runs a function of a test's module in a process of its own; fails with what it says."""
    code = f"import sys; from {body.__module__} import {body.__name__} as body; body(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
