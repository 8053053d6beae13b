"""A program that is asked by lines of JSON and answers with lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

_MOST_SAID = 4000
_END_SECONDS = 20.0


class ChildError(Exception):
    """A program of the benchmark ended before it had answered; with what it said last."""


class Child:
    def __init__(self, orders: IO[str], answers: IO[str], said: IO[str]) -> None:
        self._orders, self._answers, self._said = orders, answers, said

    def ask(self, order: Any) -> Any:
        """Raises ChildError."""
        try:
            print(json.dumps(order), file=self._orders, flush=True)
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._said.seek(0)
            raise ChildError(self._said.read()[-_MOST_SAID:])
        return json.loads(answer)


@contextmanager
def child(command: Sequence[str], variables: Mapping[str, str] | None = None) -> Iterator[Child]:
    """It lives until the context ends, so that what it has loaded serves all rounds.

    Args:
        variables: of its environment, beside ours.
    """
    with tempfile.TemporaryFile("w+") as said:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(  # type: ignore[call-overload]
            command, text=True, stderr=said, env={**os.environ, **(variables or {})}, **pipes
        )
        try:
            yield Child(process.stdin, process.stdout, said)
        finally:
            process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
