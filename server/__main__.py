"""python -m server [--demo] [--model-repository DIR] [any option of tritonserver ...]"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from server.endpoints import Endpoints
from server.errors import ModelError, ServerError
from server.installation import PROJECT
from server.launch import TritonServer
from server.terminal import foreground
from server.watcher import Watcher


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those that are tritonserver's."""
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Start Triton with the models of a repository and watch over it.",
        epilog="Every other option goes to tritonserver. HOST, HTTP_PORT, GRPC_PORT and"
        " METRICS_PORT in the environment say where it listens.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=PROJECT / "model_repository", metavar="DIR")
    add("--demo", action="store_true", help="embed a few sentences once it is ready")
    add("--keep-going", action="store_true", help="serve the models that load, if others do not")
    add("--complete-config", action="store_true", help="let models complete their configs (slower)")
    add("--exit-timeout-secs", type=int, default=30, metavar="S", help="for requests in flight")
    add("--host", help="address to listen on")
    add("--http-port", type=int, metavar="PORT")
    add("--grpc-port", type=int, metavar="PORT")
    add("--metrics-port", type=int, metavar="PORT")
    return parser.parse_known_args(arguments)


def endpoints(ours: argparse.Namespace) -> Endpoints:
    """Where to listen: the options, else the environment, else the defaults."""
    given = {"host": ours.host, "http": ours.http_port, "grpc": ours.grpc_port}
    given["metrics"] = ours.metrics_port
    known = {name: value for name, value in given.items() if value is not None}
    return replace(Endpoints.from_environment(os.environ), **known)


def say(text: str) -> None:
    """Show a line. Unbuffered, because a signal handler may come in the middle of another one."""
    with suppress(BrokenPipeError):  # nobody reads any more, and the server goes on
        os.write(sys.stdout.fileno(), f"{text}\n".encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit status."""
    ours, theirs = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        server = TritonServer(
            ours.model_repository,
            show=say,
            colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ,
            endpoints=endpoints(ours),
            options=theirs,
            keep_going=ours.keep_going,
            complete_config=ours.complete_config,
            exit_timeout=ours.exit_timeout_secs,
        )
        if ours.demo:
            from server.demo import demonstrate  # needs the clients' libraries
        with foreground():
            Watcher(server, say).run(demonstrate if ours.demo else None)
    except ModelError as error:
        print(f"these models did not load:\n{error}", file=sys.stderr)
        return 1
    except ServerError as error:
        print(f"server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
