"""docs/architecture.md: the way of a request, as a trace of one shows it."""

import pytest

from docs import request_path


@pytest.mark.slow
def test_the_page_shows_the_way_of_a_request() -> None:
    """`python -m docs.request_path` writes it anew. Two threads of the stub may come in turns, so
    which rows there are is compared, and not in which order."""
    traced = request_path.table(request_path.way(request_path.trace()))
    assert set(traced.splitlines()) == set(request_path.shown().splitlines())
