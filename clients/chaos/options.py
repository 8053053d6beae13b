"""What the operator can ask for."""

import argparse
import os
from pathlib import Path

from clients.chaos.faults import KINDS
from clients.chaos.leaks import Bounds
from clients.connection import default_url, positive

USUAL_FAULTS = [kind for kind in KINDS if kind not in ("stub", "server")]
STATUS = "0 without findings, 1 with, 2 if it could not begin, 130 if it was interrupted"


def _kinds(value: str) -> list[str]:
    kinds = value.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"no fault {unknown[0]!r}; there are {', '.join(KINDS)}")
    return list(dict.fromkeys(kinds))


def _seconds(value: str) -> float:
    number = float(value)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds")
    return number


def _url(value: str) -> str:
    return f"http://{value.removeprefix('http://')}"


def _positive_seconds(value: str) -> float:
    if (number := _seconds(value)) == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def parser() -> argparse.ArgumentParser:
    meanings = "\n".join(f"  {name:9} {kind.meaning}" for name, kind in KINDS.items())
    made = argparse.ArgumentParser(
        "python -m clients.chaos",
        description="Load and faults for a running server (make serve); every answer is checked.\n"
        "To be run on the server's host, as its user, with its ADMIN_TOKEN in the environment.",
        epilog=f"faults:\n{meanings}\n\nexit status: {STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, bounds = made.add_argument, Bounds()
    health = f"{default_url('http').rpartition(':')[0]}:{os.environ.get('HEALTH_PORT', '8003')}"
    add("--seconds", type=_seconds, default=60.0, metavar="S", help="of faults (60)")
    add("--times", type=positive, default=1, metavar="N", help="each fault, at least (1)")
    add("--model", action="append", default=[], help="to ask; may be repeated (embed, ranker)")
    add(
        "--faults",
        type=_kinds,
        default=USUAL_FAULTS,
        metavar="KIND,...",
        help="(all but stub, server)",
    )
    add("--interval", type=_seconds, default=3.0, metavar="S", help="between two faults (3)")
    add("--clients", type=positive, default=8, metavar="N", help="half HTTP, half gRPC (8)")
    add("--seed", type=int, default=0, metavar="N", help="of what is asked and hit (0)")
    add("--freeze-seconds", type=_seconds, nargs=2, default=(1.0, 15.0), metavar=("MIN", "MAX"))
    add("--warm-up", type=_positive_seconds, default=5.0, metavar="S", help="calm load before (5)")
    add("--deadline", type=_seconds, default=60.0, metavar="S", help="later is hung (60)")
    add("--patience", type=_seconds, default=60.0, metavar="S", help="for a recovery (60)")
    add("--tolerance", type=float, default=1e-3, help="relative distance of equal rows (1e-3)")
    add("--tokens", type=positive, default=32, metavar="N", help="of answers in parts (32)")
    add("--descriptors", type=int, default=bounds.descriptors, help="growth that is no leak (4)")
    add("--threads", type=int, default=bounds.threads, help="growth that is no leak (4)")
    add("--megabytes", type=int, default=bounds.megabytes, help="growth that is no leak (32)")
    add("--url", default=default_url("grpc"), help="gRPC host:port (HOST, GRPC_PORT)")
    add("--http-url", type=_url, default=_url(default_url("http")), help="(HOST, HTTP_PORT)")
    add("--health-url", type=_url, default=_url(health), help="the watcher's (HOST, HEALTH_PORT)")
    add("--json", type=Path, metavar="FILE", help="write the report there as well")
    return made
