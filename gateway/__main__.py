"""python -m gateway [--triton HOST:PORT] [--host ADDRESS] [--port PORT]"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import uvicorn

from clients.connection import default_url
from gateway.app import create
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
    return parser


if __name__ == "__main__":
    sys.exit(main())
