"""What the user is told once a server is ready."""

from collections.abc import Iterator

from server.endpoints import Endpoints
from server.process.log import Log


def failures(log: Log) -> Iterator[str]:
    """A line for each model that did not load."""
    for name, why in sorted(log.failures.items()):
        yield f"{name} did not load: {why}"


def ready_again(log: Log, seconds: float) -> str:
    """After a death."""
    return f"ready again after {seconds:.1f} s: {', '.join(sorted(log.ready))}"


def ready(log: Log, seconds: float, endpoints: Endpoints) -> str:
    """After the first start."""
    return (
        f"ready after {seconds:.1f} s: {', '.join(sorted(log.ready))}\n"
        f"  HTTP     http://{endpoints.http_url}\n"
        f"  gRPC     {endpoints.grpc_url}\n"
        f"  metrics  {endpoints.metrics_url}\n"
        f"  health   {endpoints.health_url}/ready\n"
        "Ctrl-C drains and ends it"
    )
