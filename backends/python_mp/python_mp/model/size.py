"""How large a request or a batch is, and whether that is too large."""

from __future__ import annotations

from typing import NamedTuple

from .parameters import Parameters


class Size(NamedTuple):
    """What the bounds of a batch count."""

    tokens: int
    nbytes: int
    """Of its inputs."""
    output_nbytes: int

    def plus(self, more: Size) -> Size:
        return Size(
            self.tokens + more.tokens,
            self.nbytes + more.nbytes,
            self.output_nbytes + more.output_nbytes,
        )

    def fits(self, bounds: Parameters) -> bool:
        return (
            self.tokens <= bounds.max_batch_tokens
            and self.nbytes <= bounds.max_batch_bytes
            and self.output_nbytes <= bounds.max_batch_bytes
        )

    def excess(self, bounds: Parameters) -> str:
        """What of it is too much, in half a sentence."""
        if self.tokens > bounds.max_batch_tokens:
            return f"has {self.tokens} rows; max_batch_tokens is {bounds.max_batch_tokens}"
        most = bounds.max_batch_bytes
        if self.nbytes > most:
            return f"has {self.nbytes} bytes; max_batch_bytes is {most}"
        return f"would be answered with {self.output_nbytes} bytes; max_batch_bytes is {most}"
