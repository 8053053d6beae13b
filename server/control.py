"""Triton's model control: which models there are, load, unload. Past any proxy."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any

from server import orders, token
from server.endpoints import Endpoints
from server.errors import ControlError
from server.process.log import reason

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Version:
    """One version of a model, as the repository index has it."""

    model: str
    number: int
    state: str

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self.state == "READY"

    @property
    def is_active(self) -> bool:
        """Whether it serves, is about to, or finishes what is in flight."""
        return self.state not in ("", "UNAVAILABLE")


@dataclass(frozen=True)
class Control:
    """Speaks to one tritonserver. Each verb raises ControlError with one sentence if it fails.

    Attributes:
        grpc: load and unload over gRPC. An order over HTTP holds one of Triton's threads until it
            is done, and with it the requests of all connections that this thread has.
        patience: seconds for a load or an unload; None for as long as it takes.
    """

    endpoints: Endpoints
    token: str
    grpc: bool = False
    patience: float | None = None

    def index(self, timeout: float = 5.0) -> list[Version]:
        """All versions that Triton knows of; a model never loaded has one without state."""
        return _versions(self._ask("v2/repository/index", b"", timeout))

    def version(self) -> str:
        """Of Triton."""
        return str(json.loads(self._ask("v2", None, 5.0))["version"])

    def config(self, model: str) -> dict[str, Any]:
        """The config of a model that is loaded, every default written out."""
        config: dict[str, Any] = json.loads(self._ask(f"v2/models/{model}/config", None, 5.0))
        return config

    def load(self, model: str, config: dict[str, Any] | None = None) -> None:
        """Load what the files say, or the same with another config. What serves goes on serving
        until the new one is ready; then it is drained."""
        if self.grpc:
            self._order(orders.load(model, None if config is None else json.dumps(config)))
            return
        body = {} if config is None else {"parameters": {"config": json.dumps(config)}}
        self._ask(f"v2/repository/models/{model}/load", json.dumps(body).encode(), self.patience)

    def unload(self, model: str) -> None:
        """Take no further requests, finish those in flight, free the model."""
        if self.grpc:
            self._order(orders.unload(model))
        else:
            self._ask(f"v2/repository/models/{model}/unload", b"", self.patience)

    def is_healthy(self) -> bool:
        """Triton's own readiness: it answers, and at the start has loaded every model."""
        self._ask("v2/health/ready", None, 5.0)
        return True

    def index_line(self, timeout: float) -> "IndexLine":
        """To ask for the index again and again."""
        address = self.endpoints.contact.strip("[]"), self.endpoints.http
        return IndexLine(HTTPConnection(*address, timeout=timeout), {token.HEADER: self.token})

    def _order(self, order: orders.Order) -> None:
        address = self.endpoints.contact.strip("[]"), self.endpoints.grpc
        try:
            status, text = orders.send(order, address, {token.METADATA: self.token}, self.patience)
        except OSError as error:
            raise _silence(error) from error
        if status in (orders.UNAVAILABLE, orders.CANCELLED):  # it was not asked
            raise ControlError(_reason(text))
        if status != orders.OK:
            raise ControlError(_reason(text), HTTPStatus.INTERNAL_SERVER_ERROR)

    def _ask(self, path: str, data: bytes | None, timeout: float | None) -> bytes:
        request = urllib.request.Request(
            f"http://{self.endpoints.http_url}/{path}", data, {token.HEADER: self.token}
        )
        try:
            with _OPENER.open(request, timeout=timeout) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            raise ControlError(_sentence(error), error.code) from error
        except (OSError, HTTPException) as error:
            raise _silence(error) from error


class IndexLine:
    """A connection that is kept, and an answer that is read only where it is a new one."""

    def __init__(self, connection: HTTPConnection, headers: dict[str, str]) -> None:
        self._connection = connection
        self._headers = headers
        self._answer = b""
        self._versions: list[Version] = []

    def ask(self) -> list[Version]:
        """As `Control.index`; the same object as long as nothing changes."""
        try:
            self._connection.request("POST", "/v2/repository/index", b"", self._headers)
            with self._connection.getresponse() as response:
                answer = response.read()
            if response.status != 200:
                raise ControlError(f"tritonserver answered {response.status}", response.status)
        except (OSError, HTTPException) as error:
            self.close()  # the next one goes to another of tritonserver's threads
            raise ControlError(f"tritonserver does not answer: {error}") from error
        if answer != self._answer:
            self._versions, self._answer = _versions(answer), answer
        return self._versions

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _versions(index: bytes) -> list[Version]:
    return [
        Version(model["name"], int(model.get("version") or 0), model.get("state") or "")
        for model in json.loads(index)
    ]


def _silence(error: OSError | HTTPException) -> ControlError:
    late = isinstance(getattr(error, "reason", error), TimeoutError)
    status = HTTPStatus.GATEWAY_TIMEOUT if late else None
    return ControlError(f"tritonserver does not answer: {error}", status)


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        text = str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"tritonserver answered {error.code}"
    return _reason(text)


def _reason(text: str) -> str:
    return reason(text.partition(" state: ")[2] or text).rstrip("; ")
