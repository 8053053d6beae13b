"""The work that all benchmarks share: short real texts, and one that fills the model's window."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from build_scripts import checkpoint_tokenizer
from build_scripts.sentences import sentences
from tests.support.checkpoints import packaged

CHECKPOINT = packaged()


def short_texts() -> list[str]:
    """About 300 English sentences and paragraphs, about 30 tokens on average."""
    return [text for text in sentences(400) if len(text) < 400]


def token_ids(texts: list[str]) -> list[npt.NDArray[np.int32]]:
    """INPUT_IDS [1, tokens] of each text, cut at 256 tokens."""
    encodings = checkpoint_tokenizer.load(CHECKPOINT).encode_batch(texts)
    return [np.array([encoding.ids], np.int32) for encoding in encodings]


def longest_ids() -> npt.NDArray[np.int32]:
    """INPUT_IDS [1, 256]."""
    return token_ids([" ".join(short_texts())])[0]
