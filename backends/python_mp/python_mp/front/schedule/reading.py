"""A decoder's request, as it came, becomes a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ...model import decoders, sampling_parameters
from ...model.config import ModelConfig
from ...model.errors import InvalidInput
from ...model.request import Array, read_request
from ...model.sampling_parameters import SamplingParameters
from . import travelling
from .stream import Stream, StreamAnswer

INPUT = "INPUT_IDS"


class StreamReader:
    """Raises LoadError where the version directory does not say what a decoder needs."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._decoder = decoders.read(config.folder)

    @property
    def vocabulary(self) -> int:
        return self._decoder.vocabulary

    def read(
        self, inputs: Mapping[str, Array], parameters: Mapping[str, Any], answer: StreamAnswer
    ) -> Stream:
        """
        Args:
            inputs: INPUT_IDS int32 [1, n], the prompt.
            parameters: the fields of SamplingParameters, and others' that are passed over.

        Raises:
            InvalidInput: naming what is wrong, and its numbers.
        """
        request = read_request(inputs, self._config, answer)
        settings = sampling_parameters.read(parameters, self._decoder.vocabulary)
        if settings.stop and self._decode is None:
            raise InvalidInput("the model has no tokenizer.json, which parameter 'stop' needs")
        prompt = self._prompt(inputs[INPUT])
        ids = np.empty(self._most(len(prompt), settings), np.int32)
        ids[: len(prompt)] = prompt
        eos = () if settings.ignore_eos else self._decoder.eos_token_ids
        return Stream(
            *(request.inputs, request.lengths, request.signature),
            answer=answer,
            deadline=request.deadline,
            settings=settings,
            ids=ids,
            prompt=len(prompt),
            length=len(prompt),
            stop_ids=frozenset((*eos, *settings.stop_token_ids)),
            decode=self._decode if settings.stop or settings.stop_token_ids else None,
        )

    def resume(
        self, inputs: Mapping[str, Array], said: Mapping[str, Any], answer: StreamAnswer
    ) -> Stream:
        """Another replica's stream: INPUT_IDS int32 [1, n], prompt and generated, and what
        `Stream.described` says. Raises InvalidInput."""
        request = read_request(inputs, self._config, answer)
        known, prompt = inputs[INPUT][0], said["prompt"]
        ids = np.empty(said["most"], np.int32)
        ids[:prompt] = known[:prompt]
        settings = travelling.settings(said)
        stream = Stream(
            *(request.inputs, request.lengths, request.signature),
            answer=answer,
            deadline=request.deadline,
            settings=settings,
            ids=ids,
            prompt=prompt,
            length=prompt,
            stop_ids=frozenset(said["stop_ids"]),
            ends_by=time.perf_counter() + said["ends_in"],
            decode=self._decode if settings.stop or settings.stop_token_ids else None,
        )
        stream.resume(known[prompt:])
        return stream

    def _prompt(self, ids: Array) -> Array:
        if len(ids) != 1:
            raise InvalidInput(f"a request has one prompt; got {len(ids)}: send one request each")
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= self._decoder.vocabulary:
            wrong = least if least < 0 else most
            raise InvalidInput(
                f"'{INPUT}' holds {wrong}; the model's ids are 0 to {self._decoder.vocabulary - 1}"
            )
        prompt: Array = ids[0]
        return prompt

    def _most(self, prompt: int, settings: SamplingParameters) -> int:
        """Tokens of prompt and answer."""
        context, wanted = self._decoder.context_length, settings.max_tokens
        most = prompt + (wanted or 1)
        if most > context:
            asked = f"with max_tokens {wanted}" if wanted else "with one to generate"
            raise InvalidInput(
                f"the prompt has {prompt} tokens, {asked} {most}; the model's context has {context}"
            )
        return most if wanted else context

    @cached_property
    def _decode(self) -> Callable[[list[int]], str] | None:
        path = self._decoder.folder / "tokenizer.json"
        if not path.is_file():
            return None
        from tokenizers import Tokenizer  # Most models are never asked for it.

        decode: Callable[[list[int]], str] = Tokenizer.from_file(str(path)).decode
        return decode
