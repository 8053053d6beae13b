"""docs/architecture.md: the way of a request, as a trace of one shows it."""

import pytest

from docs import request_path


@pytest.mark.slow
def test_the_page_shows_the_way_of_a_request() -> None:
    """`python -m docs.request_path` writes it anew."""
    assert request_path.table(request_path.way(request_path.trace())) == request_path.shown()
