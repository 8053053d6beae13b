"""The stub's log lines in Triton's own log."""

from __future__ import annotations

import contextlib
import logging

import triton_python_backend_utils as pb_utils


class TritonLogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        write = pb_utils.Logger.log_info
        if record.levelno >= logging.ERROR:
            write = pb_utils.Logger.log_error
        elif record.levelno >= logging.WARNING:
            write = pb_utils.Logger.log_warn
        with contextlib.suppress(Exception):  # Nobody stops serving for a line.
            write(self.format(record))


def install() -> None:
    """For all of python_mp in this process; once more changes nothing."""
    logger = logging.getLogger("python_mp")
    logger.setLevel(logging.INFO)
    logger.handlers = [TritonLogHandler()]
