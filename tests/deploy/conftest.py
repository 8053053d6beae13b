"""A front of a Triton, for all tests that do them no harm."""

from collections.abc import Iterator

import pytest

from tests.deploy.front_triton import Fronted, fronted
from tests.support.programs import Program


@pytest.fixture(scope="session")
def both(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    program("openssl")
    with fronted(program("nginx"), tmp_path_factory.mktemp("front")) as started:
        yield started
