"""The server from outside: what it says of itself."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, NamedTuple

from clients.chaos.processes import ChaosError

HEADER = "triton-admin"
LOOK_SECONDS = 0.05
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Rank(NamedTuple):
    """Of a replica that serves.

    Attributes:
        pid: on its host; 0 where that is not known.
        host: empty for Triton's own.
    """

    number: int
    pid: int
    host: str

    def __str__(self) -> str:
        return f"rank {self.number}" + (f" on host {self.host}" if self.host else "")


@dataclass(frozen=True)
class Model:
    """One entry of `models` in /status."""

    name: str
    ready: bool
    reason: str
    versions: tuple[int, ...]
    stubs: tuple[int, ...]
    replicas: tuple[dict[str, Any], ...]

    @property
    def ranks(self) -> list[Rank]:
        """Those that serve, of all replicas."""
        return [
            Rank(number, pid, host)
            for replica in self.replicas
            if replica["state"] == "serving"
            for number, (pid, host) in enumerate(
                zip(replica["ranks"], replica["hosts"], strict=True)
            )
        ]

    @property
    def is_whole(self) -> bool:
        return self.ready and all(replica["state"] == "serving" for replica in self.replicas)


@dataclass(frozen=True)
class Status:
    """What GET /status says; `server` is tritonserver's pid, None while there is none."""

    ready: bool
    reason: str
    watcher: int
    server: int | None
    models: dict[str, Model]

    @classmethod
    def parse(cls, said: dict[str, Any]) -> "Status":
        models = {
            name: Model(
                name,
                model["ready"],
                model["reason"],
                tuple(map(int, model["versions"])),
                tuple(stub["pid"] for stub in model["stubs"]),
                tuple(model["replicas"]),
            )
            for name, model in said["models"].items()
        }
        server = said["server"]["pid"]
        return cls(said["ready"], said["reason"], said["watcher"], server, models)

    @property
    def is_whole(self) -> bool:
        """Everything serves, not only enough of it."""
        return self.ready and all(model.is_whole for model in self.models.values())

    def names(self, pid: int) -> bool:
        """Whether it counts on that process."""
        return pid == self.server or any(
            pid in model.stubs or pid in [rank.pid for rank in model.ranks]
            for model in self.models.values()
        )


class Target:
    """
    Args:
        health_url: the watcher's, http://host:port.
        http_url: Triton's HTTP, http://host:port.
    """

    def __init__(self, health_url: str, http_url: str, token: str) -> None:
        self._health_url, self._http_url, self._token = health_url, http_url, token

    def status(self) -> Status:
        """Raises ChaosError."""
        return Status.parse(self._get(f"{self._health_url}/status"))

    def metadata(self, model: str) -> dict[str, Any]:
        """Names, types and shapes of a model's tensors, without inputs that may be left out, and
        whether answers come in parts (`streams`). Raises ChaosError."""
        said, config = (
            self._get(f"{self._http_url}/v2/models/{model}{of}") for of in ("", "/config")
        )
        optional = {each["name"] for each in config["input"] if each.get("optional")}
        inputs = [each for each in said["inputs"] if each["name"] not in optional]
        inputs = inputs or [each for each in said["inputs"] if each["name"] == "TEXT"]
        return said | {"inputs": inputs, "streams": any(map(self._streams, self.behind(model)))}

    def _streams(self, model: str) -> bool:
        config = self._get(f"{self._http_url}/v2/models/{model}/config")
        return bool(config.get("model_transaction_policy", {}).get("decoupled"))

    def behind(self, model: str) -> list[str]:
        """The models that a request to `model` passes through. Raises ChaosError."""
        config = self._get(f"{self._http_url}/v2/models/{model}/config")
        steps = config.get("ensemble_scheduling", {}).get("step", [])
        return [name for step in steps for name in self.behind(step["model_name"])] or [model]

    def wait(
        self, holds: Callable[[Status], bool], timeout: float, steady: float = 0.0
    ) -> float | None:
        """The moment since which /status says what `holds`, and has said so for `steady` seconds;
        None if it never does."""
        until, since = time.monotonic() + timeout, None
        while (now := time.monotonic()) < until:
            since = (since or now) if self._says(holds) else None
            if since is not None and now - since >= steady:
                return since
            time.sleep(LOOK_SECONDS)
        return None

    def _says(self, holds: Callable[[Status], bool]) -> bool:
        try:
            return holds(self.status())
        except ChaosError:
            return False

    def _get(self, url: str) -> dict[str, Any]:
        request = urllib.request.Request(url, headers={HEADER: self._token})
        try:
            with _OPENER.open(request, timeout=5.0) as reply:
                return dict(json.load(reply))
        except urllib.error.HTTPError as error:
            raise ChaosError(_refusal(url, error.code)) from error
        except (OSError, HTTPException, ValueError) as error:
            raise ChaosError(f"{url} does not answer; is the server running?") from error


def _refusal(url: str, code: int) -> str:
    if code in (401, 403):
        return f"{url} refuses the token; start the server and this program with one ADMIN_TOKEN"
    return f"{url} answers {code}"
