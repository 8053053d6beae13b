"""One forkserver for all engines."""

import pytest

from tests.support.forkserver import Pool


@pytest.fixture(scope="module", autouse=True)
def _one_forkserver(one_forkserver: Pool) -> None:
    """None of these tests measures a start."""
