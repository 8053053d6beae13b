"""Models that only tests have, and a server of one of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import python_models
from tests.support.command import Command, command

AddModel = Callable[[str, str], Path]


@pytest.fixture
def add_model(tmp_path: Path) -> AddModel:
    """`add_model(name, source)` puts a Python model of one FP32 into a repository; its path."""
    return lambda name, source: python_models.add(tmp_path / "repository", name, source).parent


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """A server of `identity` that tests leave as it is; the model's folder has a link in it."""
    model = python_models.add(tmp_path_factory.mktemp("shared") / "repository", "identity")
    (model / "1" / "also").symlink_to("model.py")
    with command(model.parent, "--host=localhost", "--id=mine") as started:
        started.wait_ready()
        yield started
