"""Two steps of an ensemble with two tokenizers: neither is loaded, until both have the same."""

import json
from pathlib import Path

import pytest

from build_scripts.publish import versions
from tests.support.serving import Serve
from tests.triton import repository

STEPS = ("embed", "embed_tokenizer", "embed_encoder", "embed_pooler")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """`embed`, whose tokenizer says that it is of another checkpoint than its encoder."""
    folder = tmp_path / "repository"
    repository.copy(folder, *STEPS)
    model = folder / "embed_tokenizer"
    manifest = model / str(versions(model)[-1]) / "manifest.json"
    said = json.loads(manifest.read_text())
    said["source"]["tokenizer"] = "0" * 64
    manifest.unlink()  # it is a link to the project's own
    manifest.write_text(json.dumps(said))
    return folder


def test_the_wrong_pair_is_not_served(models: Path, serve: Serve) -> None:
    with serve(models, keep_going=True) as server:
        failures = server.log.failures
        for model in ("embed_tokenizer", "embed_encoder"):
            assert "the ensemble embed would answer nonsense" in failures.get(model, "")
        assert server.log.ready == {"embed_pooler"}
