"""Imports numpy without the threads of its OpenBLAS, for which the watcher has no use: where the
system has no thread left, OpenBLAS interrupts the process. To be imported first."""

import os

_NAME = "OPENBLAS_NUM_THREADS"
_before = os.environ.get(_NAME)
os.environ[_NAME] = "1"
import numpy as np  # noqa: E402, F401

del os.environ[_NAME]
if _before is not None:  # models are to have what the user has chosen
    os.environ[_NAME] = _before
