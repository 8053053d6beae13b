"""The real checkpoint, its tokens, and what sentence-transformers makes of them."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_scripts.sentences import sentences
from python_mp.model.config import ModelConfig
from tests.support.checkpoints import packaged
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.forkserver import Pool
from tests.support.replicas import Array


@dataclass(frozen=True)
class Texts:
    """`ids` as embed_tokenizer makes them; `embeddings` float32 [texts, 384] by the reference."""

    ids: list[Array]
    embeddings: Array


@pytest.fixture(scope="session")
def texts() -> Texts:
    """200 texts."""
    checkpoint, written = packaged(), sentences(200)
    encoded = checkpoint.tokenizer().encode_batch(written)
    ids = [np.array(each.ids, np.int32) for each in encoded]
    with warnings.catch_warnings(action="ignore"):
        from sentence_transformers import SentenceTransformer

        reference = SentenceTransformer(str(checkpoint.path), device="cpu")
        embeddings = reference.encode(written, batch_size=16, show_progress_bar=False)
    return Texts(ids, np.asarray(embeddings))


def encoder_config(folder: Path, **more: Any) -> ModelConfig:
    """As model_repository/embed_encoder, with the files of the folder's `1`."""
    return model_config(
        folder,
        [tensor("INPUT_IDS", INT32, -1, allow_ragged_batch=True), tensor("LENGTHS", INT32, 1)],
        [tensor("HIDDEN_STATES", FP32, -1, 384)],
        engine="torch",
        lengths="LENGTHS",
        **more,
    )


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    """A model folder with the real checkpoint."""
    version = tmp_path / "encoder" / "1"
    version.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(packaged().file(name), version)
    return version.parent


@pytest.fixture(scope="module", autouse=True)
def _one_forkserver(one_forkserver: Pool) -> None:
    """None of these tests measures a start."""
