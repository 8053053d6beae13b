"""What a server is told, and the options of tritonserver that follow from it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server import token
from server.endpoints import Endpoints
from server.errors import ServerError
from server.process import installation

PYTHON_BACKENDS = ("python", "python_mp")
CONTROL = ("--model-control-mode", "--load-model", "--repository-poll-secs")
SUMMARIES = "--metrics-config=summary_latencies"  # quantiles of latency, which nothing else has
RESTRICTED = ("--http-restricted-api", "--grpc-restricted-protocol")


@dataclass(frozen=True)
class Tls:
    """Files, PEM, for gRPC; with `client_ca` clients need a certificate, too."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Raises ServerError for a file that cannot be read."""
        names = {"--tls-certificate": self.certificate, "--tls-key": self.key}
        if self.client_ca is not None:
            names["--tls-client-ca"] = self.client_ca
        for option, file in names.items():
            if not file.is_file() or not os.access(file, os.R_OK):
                raise ServerError(f"{option} {file} is not a file that can be read")

    def options(self) -> list[str]:
        """The same as options of tritonserver."""
        mutual = ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}"]
        return [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.certificate}",
            f"--grpc-server-key={self.key}",
            *(mutual if self.client_ca is not None else []),
        ]


@dataclass(frozen=True)
class Settings:
    """All there is to say about one server.

    Attributes:
        model_repository: folder with one folder a model.
        endpoints: where to listen.
        options: any further options of tritonserver.
        environment: added to this process's own.
        keep_going: serve the models that did load, where others did not.
        complete_config: let models complete their configs; starts one stub more for each of them.
        exit_timeout: seconds that requests in flight are given at the end.
        load_timeout: seconds that a start, or the load of a model, may take; None for no limit.
        token: opens everything but inference, health and metadata.
        tls: for gRPC.
    """

    model_repository: Path
    endpoints: Endpoints = field(default_factory=Endpoints)
    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    keep_going: bool = False
    complete_config: bool = False
    exit_timeout: int = 30
    load_timeout: float | None = None
    token: str = field(default_factory=lambda: token.choose(None, os.environ), repr=False)
    tls: Tls | None = None

    @property
    def verbose(self) -> bool:
        """Whether the whole log is wanted."""
        return self._has("--log-verbose")

    @property
    def plain_grpc(self) -> bool:
        """Whether it listens for gRPC, and that without TLS and by our token."""
        return self.tls is None and self._allows("grpc") and not self._has(RESTRICTED[1])

    @property
    def http(self) -> bool:
        """Whether it listens for HTTP at all."""
        return self._allows("http")

    @property
    def own_control(self) -> str:
        """Why models cannot be loaded from here; empty if they can."""
        if not self.http:
            return "HTTP is switched off"
        own = [name for name in (*CONTROL, RESTRICTED[0]) if self._has(name)]
        return f"{own[0]} was given" if own else ""

    def check(self) -> None:
        """Raises ServerError, in one sentence, where a server could not start."""
        repository = self.model_repository
        if not repository.is_dir():
            raise ServerError(f"there is no model repository at {repository}")
        if repository == installation.PROJECT / "model_repository" and not any(
            repository.glob("*/*/manifest.json")
        ):
            raise ServerError(f"the models in {repository} are not built yet; run 'make build'")
        if not any(repository.glob("*/config.pbtxt")):
            raise ServerError(f"{repository} holds no model: no folder in it has a config.pbtxt")
        if self.tls is not None:
            self.tls.check()
        self.endpoints.check()

    def arguments(self, prefix: str, models: Sequence[str] = ("*",)) -> list[str]:
        """Options of tritonserver.

        Args:
            prefix: begins the names of its shared-memory segments.
            models: those to load.
        """
        as_written = [] if self.complete_config else ["--disable-auto-complete-config"]
        tolerant = ["--exit-on-error=false", "--strict-readiness=false"] if self.keep_going else []
        control = [f"--load-model={model}" for model in models]
        chosen = any(option.startswith(SUMMARIES) for option in self.options)
        summaries = [] if chosen else [f"{SUMMARIES}=true"]
        return [
            f"--model-repository={self.model_repository}",
            f"--exit-timeout-secs={self.exit_timeout}",
            *(
                f"--backend-config={name},shm-region-prefix-name={prefix}"
                for name in PYTHON_BACKENDS
            ),
            *self.endpoints.options(),
            *([] if self._has(*CONTROL) else ["--model-control-mode=explicit", *control]),
            *(rule for rule in token.options(self.token) if not self._has(rule.split("=")[0])),
            *(self.tls.options() if self.tls is not None else []),
            *summaries,
            *as_written,
            *tolerant,
            *self.options,
        ]

    def _allows(self, protocol: str) -> bool:
        return not {f"--allow-{protocol}={no}" for no in ("false", "0")} & set(self.options)

    def _has(self, *names: str) -> bool:
        return any(option.split("=")[0] in names for option in self.options)
