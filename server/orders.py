"""Orders to Triton over gRPC, each on a connection of its own.

Not with gRPC's own library: its core ends the process that it is in where the system has no
descriptor left. Here whatever fails is an OSError.

The protocol: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. The messages: KServe's
grpc_service.proto with Triton's extension "model_repository".
"""

import socket
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

SERVICE = "/inference.GRPCInferenceService/"
CONNECT_SECONDS = 5.0
OK, CANCELLED, UNAVAILABLE = 0, 1, 14  # of gRPC's statuses those that matter here
LONGEST_ERROR = (1 << 24) - 1  # bytes; a model's may hold a trace of many frames
_STREAM = 1  # the only one of a connection
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Order:
    """A method of Triton's service and its message, encoded."""

    method: str
    message: bytes


def load(model: str, config: str | None = None) -> Order:
    """What the files say, or the same with another config (JSON)."""
    message = _field(2, model.encode())
    if config is not None:
        parameter = _field(3, config.encode())
        message += _field(3, _field(1, b"config") + _field(2, parameter))
    return Order("RepositoryModelLoad", message)


def unload(model: str) -> Order:
    """Take no further requests, finish those in flight, free the model."""
    return Order("RepositoryModelUnload", _field(2, model.encode()))


def send(
    order: Order, address: tuple[str, int], metadata: dict[str, str], patience: float | None
) -> tuple[int, str]:
    """gRPC's status, and the text of an error.

    Args:
        address: numbers of host and port.
        patience: seconds for all of it; None for as long as it takes.

    Raises:
        TimeoutError: they were over.
        OSError: tritonserver was not reached, or its answer did not come.
    """
    deadline = None if patience is None else time.monotonic() + patience
    with _connected(address) as line:
        host, port = address
        head = {":method": "POST", ":scheme": "http", ":path": SERVICE + order.method}
        head |= {":authority": f"{host}:{port}", "te": "trailers"}
        head |= {"content-type": "application/grpc", **metadata}
        try:
            return _Call(head, order.message).run(line, deadline)
        except H2Error as error:
            raise ConnectionError(f"it does not speak gRPC there: {error}") from error


def _connected(address: tuple[str, int]) -> socket.socket:
    try:
        line = socket.create_connection(address, CONNECT_SECONDS)
    except TimeoutError as error:  # it was not asked, so it cannot be late
        raise ConnectionError(f"no connection within {CONNECT_SECONDS:.0f} s") from error
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


@dataclass
class _Call:
    """One request and its answer, which is all in the headers: the messages are empty."""

    head: dict[str, str]
    message: bytes
    said: dict[str, str] = field(default_factory=dict)
    is_over: bool = False

    def run(self, line: socket.socket, deadline: float | None) -> tuple[int, str]:
        """To its end; raises H2Error for what is no HTTP/2."""
        http = _connection()
        http.send_headers(_STREAM, [*self.head.items()])
        unsent = bytes(1) + len(self.message).to_bytes(4) + self.message  # 0: not compressed
        while not self.is_over:
            unsent = _send_what_fits(http, unsent)
            line.settimeout(None if deadline is None else max(1e-3, deadline - time.monotonic()))
            line.sendall(http.data_to_send())
            if not (heard := line.recv(_CHUNK)):
                raise ConnectionError("it hung up")
            for event in http.receive_data(heard):
                self._take(event)
        return self._verdict()

    def _take(self, event: Event) -> None:
        match event:
            case ResponseReceived() | TrailersReceived():
                self.said |= dict[Any, Any](event.headers or [])
            case StreamEnded():
                self.is_over = True
            case ConnectionTerminated(error_code=ErrorCodes.NO_ERROR, last_stream_id=int(last)) if (
                last >= _STREAM
            ):
                pass  # it takes no further calls, and finishes ours
            case StreamReset() | ConnectionTerminated():
                raise ConnectionError(f"it broke off: {event.error_code!r}")

    def _verdict(self) -> tuple[int, str]:
        if not self.said.get("grpc-status", "").isdecimal():
            raise ConnectionError(f"it answered {self.said.get(':status')}, which is not gRPC")
        return int(self.said["grpc-status"]), unquote(self.said.get("grpc-message", ""))


class _ConnectionState(H2ConnectionStateMachine):
    """h2 takes a server that wants no further calls for the end of those under way too."""

    def __init__(self) -> None:
        super().__init__()
        still_open = (None, ConnectionState.CLIENT_OPEN)
        going = (ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY)
        self._transitions = {**self._transitions, going: still_open}


def _connection() -> H2Connection:
    http = H2Connection(H2Configuration(header_encoding="latin-1"))
    http.state_machine = _ConnectionState()
    http.local_settings = Settings(
        initial_values={
            SettingCodes.MAX_FRAME_SIZE: LONGEST_ERROR,
            SettingCodes.MAX_HEADER_LIST_SIZE: LONGEST_ERROR,
        }
    )
    http.max_inbound_frame_size = http.decoder.max_header_list_size = LONGEST_ERROR
    http.initiate_connection()
    return http


def _send_what_fits(http: H2Connection, unsent: bytes) -> bytes:
    """What is left of a request until tritonserver makes room for more."""
    while unsent and (room := http.local_flow_control_window(_STREAM)) > 0:
        size = min(room, http.max_outbound_frame_size)
        http.send_data(_STREAM, unsent[:size], end_stream=size >= len(unsent))
        unsent = unsent[size:]
    return unsent


def _field(number: int, content: bytes) -> bytes:
    """One of protobuf with a length: a string, bytes or a message."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low = bytes([number & 0x7F | (0x80 if number > 0x7F else 0)])
    return low + (_varint(number >> 7) if number > 0x7F else b"")
