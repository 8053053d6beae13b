"""The C kernels of `kernels/`, where they were compiled; else torch computes, more slowly.

They run on OpenMP's threads, which are torch's own: the library is loaded once in a process, and a
second set of threads would wait for the same cores.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch  # noqa: F401 (its OpenMP is to be the one in the process)

try:
    from . import _kernels

    _compiled = Path(_kernels.__file__).stat().st_mtime
    if any(
        file.stat().st_mtime > _compiled for file in Path(__file__).parent.glob("kernels/*.[ch]")
    ):
        raise ImportError("_kernels was compiled from older sources: run `make install`")
except ImportError as error:
    logging.getLogger(__name__).warning(
        "few rows are computed by torch, which is far slower than the C extension: %s", error
    )
    _kernels = None  # type: ignore[assignment]

kernels = _kernels
