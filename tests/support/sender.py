"""Sends what a campaign made, and judges the answers."""

from __future__ import annotations

import http.client
import re
from collections import Counter
from itertools import takewhile

import grpc
import numpy as np
from psutil import Process
from tritonclient.grpc.service_pb2 import ModelInferResponse, ModelStreamInferResponse

from server.process.installation import PROJECT
from server.process.launch import TritonServer
from tests.support.bad_json import GOOD, HttpCall
from tests.support.bad_messages import INFER, is_message, valid_message
from tests.support.serving import processes_of

SERVICE = "/inference.GRPCInferenceService"
SECONDS = 30.0
# Triton answers these with 500 and more. All else must be 2xx or 4xx.
HTTP_EXCEPTIONS = (
    (500, r"failed to parse the request JSON buffer"),
    (500, r"Unable to parse (JSON bytes array|')"),  # a wrong type; too few data
    (500, r"Unable to set 'classification'"),
    (500, r"failed to get request params|Expected JSON object"),
    (501, r"Unsupported compression type"),
    (503, r"waited longer than|[Tt]imeout"),  # which the client itself asked for
)
GRPC_CODES = {
    *(grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND),
    *(grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED),
}
GRPC_EXCEPTIONS = (
    (grpc.StatusCode.INTERNAL, r"^Unable to parse request$"),
    (grpc.StatusCode.UNAVAILABLE, r"protocol is restricted, expecting header"),
    (grpc.StatusCode.UNAVAILABLE, r"waited longer than|[Tt]imeout"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, r"metadata size exceeds"),  # its own text is too long
)


def memory(server: TritonServer) -> dict[int, int]:
    """MiB of each process of the run."""
    pids = processes_of(server.run.folder)
    return {pid: Process(pid).memory_info().rss >> 20 for pid in pids}


class Sender:
    """One connection of each kind, kept open, and what was answered how often."""

    def __init__(self, server: TritonServer) -> None:
        endpoints = server.endpoints
        self.answers: Counter[str] = Counter()
        self._http = http.client.HTTPConnection(endpoints.contact, endpoints.http, timeout=SECONDS)
        self._channel = grpc.insecure_channel(endpoints.grpc_url)
        places = (server.run.folder, server.settings.model_repository, PROJECT, server.run.prefix)
        self._secrets = ("Traceback", ".py", "/dev/shm", "site-packages", *map(str, places))
        self._good = {model: self._infer(model) for model in GOOD}

    @property
    def sent(self) -> int:
        return sum(self.answers.values())

    def close(self) -> None:
        self._http.close()
        self._channel.close()

    def http(self, call: HttpCall) -> None:
        """Sends it; fails unless it is served, refused with a 4xx, or a named exception."""
        try:
            self._http.request(call.method, call.path, call.body, call.headers)
            answer = self._http.getresponse()
            status, body = answer.status, answer.read()
        except (http.client.HTTPException, OSError) as error:
            self._http.close()
            raise AssertionError(f"no answer ({error!r}) to {call}") from error
        self.answers[f"HTTP {status}"] += 1
        if status == 200:
            return
        text = body.decode(errors="replace")
        self._check_text(text, call)
        named = any(status == code and re.search(p, text) for code, p in HTTP_EXCEPTIONS)
        assert 400 <= status < 500 or named, f"{status} {text} to {call}"

    def grpc(self, call: tuple[str, bytes]) -> None:
        """Sends (rpc, message); fails unless it is served, refused with a fitting code, or a named
        exception."""
        rpc, message = call
        try:
            self._channel.unary_unary(f"{SERVICE}/{rpc}")(message, timeout=SECONDS)
            self.answers["gRPC OK"] += 1
        except grpc.RpcError as error:
            code, text = error.code(), error.details()
            self.answers[f"gRPC {code.name}"] += 1
            self._check_text(text, call)
            named = any(code == other and re.search(p, text) for other, p in GRPC_EXCEPTIONS)
            assert code in GRPC_CODES or named, f"{code.name} {text} to {call!r}"

    def stream(self, messages: list[bytes]) -> None:
        """Sends all in one ModelStreamInfer: each is answered, until one cannot be read. Triton
        ends the stream there, without a word."""
        call = self._channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
        answers = [
            ModelStreamInferResponse.FromString(answer).error_message
            for answer in call(iter(messages), timeout=SECONDS)
        ]
        for text in answers:
            self.answers["stream refused" if text else "stream OK"] += 1
            self._check_text(text, messages)
        readable = len(list(takewhile(is_message, messages)))
        assert len(answers) == readable, f"{len(answers)} answers to {messages}"

    def good(self) -> None:
        """The next good requests are answered, with the same values as at the beginning."""
        for model, values in self._good.items():
            for one, other in zip(values, self._infer(model), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)

    def _infer(self, model: str) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        call = self._channel.unary_unary(f"{SERVICE}/{INFER}")
        message = valid_message(model).SerializeToString()
        answer = ModelInferResponse.FromString(call(message, timeout=SECONDS))
        blobs = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return [np.frombuffer(blob, np.float32) for spec, blob in blobs if spec.datatype == "FP32"]

    def _check_text(self, text: str, asked: object) -> None:
        for secret in self._secrets:
            assert secret not in text, f"{secret!r} is shown in {text!r} to {asked!r}"
