"""What a server is told, and the options of tritonserver that follow from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server import installation
from server.endpoints import Endpoints
from server.errors import ServerError

PYTHON_BACKENDS = ("python", "python_mp")


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
    """

    model_repository: Path
    endpoints: Endpoints = field(default_factory=Endpoints)
    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    keep_going: bool = False
    complete_config: bool = False
    exit_timeout: int = 30

    @property
    def verbose(self) -> bool:
        """Whether the whole log is wanted."""
        return any(option.startswith("--log-verbose") for option in self.options)

    @property
    def http(self) -> bool:
        """Whether it listens for HTTP at all."""
        return not {"--allow-http=false", "--allow-http=0"} & set(self.options)

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
        self.endpoints.check()

    def arguments(self, prefix: str) -> list[str]:
        """Options of tritonserver; `prefix` begins the names of its shared-memory segments."""
        as_written = [] if self.complete_config else ["--disable-auto-complete-config"]
        tolerant = ["--exit-on-error=false", "--strict-readiness=false"] if self.keep_going else []
        return [
            f"--model-repository={self.model_repository}",
            f"--exit-timeout-secs={self.exit_timeout}",
            *(
                f"--backend-config={name},shm-region-prefix-name={prefix}"
                for name in PYTHON_BACKENDS
            ),
            *self.endpoints.options(),
            *as_written,
            *tolerant,
            *self.options,
        ]
