"""Which tests run beside each other, where there are several workers (`make test`, or `-n 2`)."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


class ByFolder(LoadScopeScheduling):
    """Those of tests/unit, each beside any other one. Those of another folder share a server, a
    network or a forkserver, and so a worker; they run beside other folders' only."""

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.split("/")[1]
        return nodeid if folder == "unit" else folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFolder:
    return ByFolder(config, log)
