"""Where REQUIRE_PROGRAMS is set nothing is left out: what would be skipped fails, but for tests
that need a GPU or TensorRT and say so by a marker."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

HARDWARE = ("gpu", "tensorrt")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not any(item.get_closest_marker(name) for name in HARDWARE):
        _fail_what_was_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_what_was_skipped(report)
    return report


def _fail_what_was_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("REQUIRE_PROGRAMS"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_PROGRAMS is set, and this would be left out. {reason}"
