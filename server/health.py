"""Is it ready? Asked over HTTP, past any proxy."""

import json
import socket
import urllib.error
import urllib.request
from http.client import HTTPException

from server.endpoints import Endpoints

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_ready(endpoints: Endpoints, *, http: bool = True) -> bool:
    """True once the server answers and no model is loading any more.

    Args:
        endpoints: where it listens, or will.
        http: False where HTTP is switched off. Then, as where health is restricted, that it listens
            at all must do: Triton opens its ports after the models are loaded.
    """
    try:
        if not http:
            socket.create_connection((endpoints.contact.strip("[]"), endpoints.grpc), 5.0).close()
            return True
        _request(endpoints, "v2/health/ready")
        return "LOADING" not in models(endpoints).values()
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, HTTPException):
        return False


def models(endpoints: Endpoints) -> dict[str, str]:
    """Model name to its state: READY, LOADING, UNLOADING or UNAVAILABLE."""
    index = json.loads(_request(endpoints, "v2/repository/index", data=b""))
    return {model["name"]: model.get("state", "UNAVAILABLE") for model in index}


def _request(endpoints: Endpoints, path: str, data: bytes | None = None) -> bytes:
    with _OPENER.open(f"http://{endpoints.http_url}/{path}", data, timeout=5.0) as response:
        return bytes(response.read())
