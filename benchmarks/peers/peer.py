"""What is known of a peer: what it needs, how it is started, and how a text is sent to it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from server.endpoints import Endpoints

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Wire:
    """A text as the body of a POST, and the vector, float32 [width], of what comes back."""

    path: str
    body: Callable[[str], str]
    vector: Callable[[bytes], Array]


@dataclass(frozen=True)
class Packages:
    """The environment of a peer.

    Attributes:
        name: its folder under build/peers/.
        requirements: pinned, as pip takes them.
        alone: whether all packages are its own. Else it sees ours, torch and the engines among
            them, so that only the server differs.
        unwanted: what pip brings and it does not work with.
    """

    name: str
    requirements: tuple[str, ...]
    alone: bool = False
    unwanted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """
    Attributes:
        name: of the server, with what sets it apart from another row of the same server.
        engine: what computes.
        packages: None is our own environment.
        command: arguments behind Python's, by where to listen.
        triton_model: what to ask over gRPC, too.
        environment: variables beside ours.
        folder: where it is started, if that matters.
    """

    name: str
    engine: str
    packages: Packages | None
    wire: Wire
    command: Callable[[Endpoints], list[str]]
    triton_model: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def doors(self) -> tuple[str, ...]:
        return ("HTTP", "gRPC") if self.triton_model else ("HTTP",)


@dataclass(frozen=True)
class InProcess:
    """An engine that is called in a loop, with nothing before it."""

    name: str
    engine: str
    packages: Packages | None
    program: Path


def raw(path: str = "/", body: Callable[[str], str] = str) -> Wire:
    """A text as it is, and float32 as they are: the least that a server can be given."""
    return Wire(path, body, lambda content: np.frombuffer(content, "<f4"))


def openai(path: str, model: str) -> Wire:
    """OpenAI's /embeddings, with vectors as base64."""

    def body(text: str) -> str:
        return json.dumps({"model": model, "input": text, "encoding_format": "base64"})

    def vector(content: bytes) -> Array:
        return np.frombuffer(base64.b64decode(json.loads(content)["data"][0]["embedding"]), "<f4")

    return Wire(path, body, vector)


def triton(model: str, width: int) -> Wire:
    """Triton's HTTP: JSON with a text, and behind the answer's JSON the vector's bytes."""

    def body(text: str) -> str:
        shape = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
        output = {"name": "EMBEDDING", "parameters": {"binary_data": True}}
        return json.dumps({"inputs": [shape], "outputs": [output]})

    return Wire(
        f"/v2/models/{model}/infer",
        body,
        lambda content: np.frombuffer(content[-4 * width :], "<f4"),
    )
