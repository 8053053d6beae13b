"""python -m server [--demo] [--openai] [--build NAME] [any option of tritonserver ...]"""

from server.process import blas as blas

# isort: split
import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.endpoints import Endpoints
from server.errors import ModelError, ServerError
from server.process import agents_exchange, ray_placement, spanning
from server.process.agents_exchange import AgentsExchange
from server.process.beside import Beside
from server.process.companion import Companion
from server.process.installation import PROJECT
from server.process.late_build import LateBuild
from server.process.launch import TritonServer
from server.process.ray_placement import RayPlacement
from server.settings import Settings, Tls
from server.terminal import Lines, foreground
from server.token import choose
from server.watch.watcher import Watcher

say = Lines(1)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those that are tritonserver's."""
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Start Triton with the models of a repository and watch over it.",
        epilog="Every other option goes to tritonserver. HOST, HTTP_PORT, GRPC_PORT, METRICS_PORT,"
        " HEALTH_PORT, OPENAI_PORT, AGENT_HOST and AGENT_PORT in the environment say where it"
        " listens, AGENT_TOKEN what agents of other hosts must know, ADMIN_TOKEN what"
        " opens model control and statistics (else nobody but this program can).",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=PROJECT / "model_repository", metavar="DIR")
    add("--demo", action="store_true", help="show that embed and chat answer, once each is ready")
    add(
        "--build",
        action="append",
        default=[],
        metavar="NAME",
        help="build this recipe behind what is served where it is missing or stale, and load it",
    )
    add("--openai", action="store_true", help="OpenAI's interface, too (docs/openai.md)")
    add("--keep-going", action="store_true", help="serve the models that load, if others do not")
    add("--complete-config", action="store_true", help="let models complete their configs (slower)")
    add("--exit-timeout-secs", type=int, default=30, metavar="S", help="for requests in flight")
    add("--load-timeout-secs", type=float, metavar="S", help="for a start and each load (no limit)")
    add("--drain-window-secs", type=float, default=0.0, metavar="S", help="not ready, yet serving")
    add("--no-watch-repository", action="store_true", help="load nothing that changes later")
    add("--admin-token-file", type=Path, metavar="FILE", help="holds the token, one line")
    add("--tls-certificate", type=Path, metavar="PEM", help="of gRPC")
    add("--tls-key", type=Path, metavar="PEM")
    add("--tls-client-ca", type=Path, metavar="PEM", help="whose certificates clients must have")
    add("--host", help="address to listen on")
    add("--http-port", type=int, metavar="PORT")
    add("--grpc-port", type=int, metavar="PORT")
    add("--metrics-port", type=int, metavar="PORT")
    add("--health-port", type=int, metavar="PORT")
    add("--openai-port", type=int, metavar="PORT")
    agents_exchange.add_options(parser)
    ray_placement.add_options(parser)
    return parser.parse_known_args(arguments)


def endpoints(ours: argparse.Namespace) -> Endpoints:
    """Where to listen: the options, else the environment, else the defaults."""
    given = {"host": ours.host, "http": ours.http_port, "grpc": ours.grpc_port}
    given |= {"metrics": ours.metrics_port, "health": ours.health_port}
    given |= {"openai": ours.openai_port}
    given |= {"agents": ours.agent_port, "agent_host": ours.agent_host}
    known = {name: value for name, value in given.items() if value is not None}
    return replace(Endpoints.from_environment(os.environ), **known)


def tls(ours: argparse.Namespace) -> Tls | None:
    """What encrypts gRPC; raises ServerError where half of it is missing."""
    if ours.tls_certificate is None and ours.tls_key is None and ours.tls_client_ca is None:
        return None
    if ours.tls_certificate is None or ours.tls_key is None:
        raise ServerError("TLS needs both --tls-certificate and --tls-key")
    return Tls(ours.tls_certificate, ours.tls_key, ours.tls_client_ca)


def warn(settings: Settings) -> None:
    """Say what is open or off, of what one may rely on."""
    if not settings.endpoints.is_local:
        say(
            f"warning: {settings.endpoints.host} is reached from other machines: HTTP has no TLS,"
            " and neither do metrics and health; let others in through a proxy (docs/security.md)"
        )
    if settings.own_control:
        say(
            f"warning: {settings.own_control}, so dead stubs stay dead, changes of the repository"
            " are not loaded, and /ready knows nothing of single models"
        )


def _followers(ours: argparse.Namespace, server: TritonServer) -> Iterator[Any]:
    """What begins once models are ready, as it says."""
    if ours.demo:
        from server.demo import Demonstrations  # needs the clients' libraries

        yield Demonstrations(server.endpoints, say)
    if ours.build and (ours.no_watch_repository or server.settings.own_control):
        raise ServerError("--build needs a server that loads what changes; its options forbid that")
    if ours.build:
        yield LateBuild(ours.model_repository.resolve(), ours.build, server.net, say)


def _wants_exchange(ours: argparse.Namespace) -> bool:
    there = ours.model_repository.is_dir()
    return bool(ours.agents or (there and spanning.models(ours.model_repository)))


def _hosts(ours: argparse.Namespace, server: TritonServer, exchange: str) -> Iterator[Beside]:
    """What lets other hosts in, and what has agents started there."""
    more = server.endpoints, agents_exchange.options(ours), server.net, say
    yield AgentsExchange(exchange, *more)
    if hosts := spanning.placed_by_ray(ours.model_repository):
        yield RayPlacement(hosts, ours, server.endpoints, server.net, say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit status."""
    ours, theirs = parse(sys.argv[1:] if arguments is None else arguments)
    exchange = agents_exchange.new_name() if _wants_exchange(ours) else ""
    try:
        server = TritonServer(
            ours.model_repository,
            show=say,
            colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ,
            endpoints=endpoints(ours),
            options=theirs,
            keep_going=ours.keep_going or bool(ours.build),  # what is stale may not load
            complete_config=ours.complete_config,
            exit_timeout=ours.exit_timeout_secs,
            load_timeout=ours.load_timeout_secs,
            token=choose(ours.admin_token_file, os.environ),
            tls=tls(ours),
            environment=agents_exchange.environment(exchange) if exchange else {},
        )
        warn(server.settings)
        with foreground(), ExitStack() as beside:
            if exchange:
                for each in _hosts(ours, server, exchange):
                    beside.enter_context(each)
            if ours.openai:
                beside.enter_context(Companion(server.settings, server.net, say))
            followers = [beside.enter_context(each) for each in _followers(ours, server)]
            watcher = Watcher(
                server,
                say,
                drain_window=ours.drain_window_secs,
                watch_repository=not ours.no_watch_repository,
            )
            watcher.run(lambda ready: [each.serving(ready) for each in followers])
    except ModelError as error:
        print(f"these models did not load:\n{error}", file=sys.stderr)
        return 1
    except (ServerError, OSError) as error:
        print(f"server: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("server: there is not enough memory", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
