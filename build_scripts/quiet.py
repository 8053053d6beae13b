"""Libraries warn in a build of what is not ours to change."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

TALKATIVE = "torch.onnx", "torch.utils._pytree", "torchao", "transformers"


@contextmanager
def quiet() -> Iterator[None]:
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        yield
