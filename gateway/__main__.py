"""python -m gateway [--triton HOST:PORT] [--host ADDRESS] [--port PORT]"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from functools import partial

import uvicorn

from clients.connection import default_url
from gateway.app import create
from gateway.silence import Limits
from server import token

PORT = 8004
DRAIN_SECONDS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; the exit status."""
    options = _parser().parse_args(arguments)
    app = create(
        options.triton,
        admin_token=os.environ.get(token.VARIABLE, ""),
        token=os.environ.get("GATEWAY_TOKEN", ""),
        limits=Limits(options.triton_seconds, options.answer_seconds),
    )
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m gateway",
        description="OpenAI's interface to a Triton.",
        epilog="In the environment: ADMIN_TOKEN is Triton's, which opens the list of its models;"
        " GATEWAY_TOKEN what clients must send as API key.",
    )
    host, port = os.environ.get("HOST") or "127.0.0.1", os.environ.get("OPENAI_PORT", PORT)
    parser.add_argument("--triton", default=default_url("grpc"), metavar="HOST:PORT", help="gRPC")
    parser.add_argument("--host", default=host, help="address to listen on (HOST)")
    parser.add_argument("--port", type=int, default=port, help="to listen on (OPENAI_PORT, 8004)")
    add = partial(parser.add_argument, type=_seconds, metavar="SECONDS")
    silence = "until a Triton that says nothing counts as gone (TRITON_SECONDS, 10)"
    add("--triton-seconds", default=_set("TRITON_SECONDS", Limits.triton), help=silence)
    patience = "for which a model may say nothing (ANSWER_SECONDS, 300)"
    add("--answer-seconds", default=_set("ANSWER_SECONDS", Limits.answer), help=patience)
    return parser


def _set(variable: str, default: float) -> str:
    return os.environ.get(variable) or str(default)


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds


if __name__ == "__main__":
    sys.exit(main())
