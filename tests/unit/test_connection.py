"""What a client asks again, and what it does not."""

import pytest
from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

from clients import connection

GONE = [
    InferenceServerException("down", "StatusCode.UNAVAILABLE"),
    InferenceServerException("nobody there", "502"),
    InferenceServerException("full", "503"),
    HTTPConnectionClosed("it closed"),
    ConnectionResetError(),
]
FINAL = [
    InferenceServerException("wrong shape", "StatusCode.INVALID_ARGUMENT"),
    InferenceServerException("wrong shape", "400"),
    InferenceServerException("it killed its ranks", "StatusCode.INTERNAL"),
    ValueError("a bug"),
]


def failing(times: int, error: Exception) -> tuple[list[int], str]:
    """What a call that fails `times` times before it succeeds was worth."""
    calls: list[int] = []

    @connection.patient
    def infer() -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return "answer"

    return calls, infer()


@pytest.mark.parametrize("error", GONE, ids=repr)
def test_a_lost_request_is_made_again(error: Exception) -> None:
    calls, answer = failing(2, error)
    assert (len(calls), answer) == (3, "answer")


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_a_verdict_is_final(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        failing(1, error)
    assert raised.value is error


def test_patience_ends_with_the_last_error() -> None:
    with pytest.raises(ConnectionResetError):
        failing(connection.ATTEMPTS, ConnectionResetError())


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tls_is_asked_for_by_the_address(protocol: connection.Protocol) -> None:
    scheme = {"grpc": "grpcs", "http": "https"}[protocol]
    with connection.connect(protocol, "127.0.0.1:1") as plain:
        assert plain
    with connection.connect(protocol, f"{scheme}://127.0.0.1:1") as secure:
        assert type(secure) is type(plain)
