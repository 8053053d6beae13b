"""An artifact as it will be served, by a replica of python_mp, to be asked samples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from build_scripts.errors import BuildError
from build_scripts.job import Job, artifact_stage
from python_mp.machine.temporary import temporary_folder

if TYPE_CHECKING:
    from python_mp.front.local import Local
    from python_mp.model.config import ModelConfig
    from python_mp.model.request import Array


START_SECONDS, HANG_SECONDS = 900, 120
"""At least, for ranks to load, and without progress: a build may get few of the processors, behind
what is served."""


@contextmanager
def served(job: Job, requests: Sequence[dict[str, Array]]) -> Iterator[Local]:
    """Raises BuildError with what the replica says, of its start or of a request."""
    from python_mp.front import local
    from python_mp.model.errors import PythonMpError

    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        config = job.served_from(job.output(artifact_stage(job.outputs)), Path(folder))
        try:
            with local.served(with_room(config, requests), Path(folder)) as replica:
                yield replica
        except PythonMpError as error:
            raise BuildError(f"{job.name}: {error}") from error


def with_room(config: ModelConfig, requests: Sequence[dict[str, Array]]) -> ModelConfig:
    """Nobody else waits, and every sample is to be answered, however long that takes."""
    said, nbytes = config.parameters, sum(a.nbytes for each in requests for a in each.values())
    parameters = replace(
        said,
        max_queue_requests=max(said.max_queue_requests, len(requests)),
        max_queue_bytes=max(said.max_queue_bytes, 2 * nbytes),
        start_timeout_seconds=max(said.start_timeout_seconds, START_SECONDS),
        hang_seconds=max(said.hang_seconds, HANG_SECONDS),
    )
    return replace(config, parameters=parameters, queue_seconds=math.inf)
