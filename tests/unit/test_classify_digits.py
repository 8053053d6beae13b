"""The classifier's training, in small: the same twice, the served module, never below the bound."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress

from build_scripts.errors import BuildError
from build_scripts.job import REPOSITORY
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding import source
from python_mp.sharding.shard import Shard
from tests.support.examples import digits


def test_held_out_digits_are_not_trained_with() -> None:
    images, labels, held_out, expected = digits.digits()
    assert len(labels) + len(expected) == 1797
    assert np.bincount(expected).min() >= 34
    seen = {image.tobytes() for image in images.numpy()}
    assert not any(image.tobytes() in seen for image in held_out.numpy())


def test_two_trainings_write_the_same_bytes_which_are_what_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over the images, and nothing asked of it; then too much."""
    monkeypatch.setattr(digits, "EPOCHS", 1)
    monkeypatch.setattr(digits, "LEAST_ACCURACY", 0.0)
    progress = Progress(disable=True)
    settings = torch.get_num_threads(), torch.is_grad_enabled()
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    facts = digits.make(first, progress)
    torch.manual_seed(7)  # nobody else's random numbers matter
    with torch.no_grad():
        assert digits.make(second, progress) == facts
    one, other = (path / "model.safetensors" for path in (first, second))
    assert one.read_bytes() == other.read_bytes()
    assert settings == (torch.get_num_threads(), torch.is_grad_enabled())
    # Read back as a rank reads it, the weights have the accuracy that the manifest will say.
    names = {"inputs": ("PIXELS",), "outputs": ("LOGITS",)}
    shard = Shard(0, 1, 0, 1, torch.float32, torch.device("cpu"), first, {}, Alone(), **names)
    module = source.read(REPOSITORY / "classifier").build(shard)
    requests, labels = digits.samples(first)
    images = torch.from_numpy(np.concatenate([request["PIXELS"] for request in requests]))
    logits = module({"PIXELS": images}, None)["LOGITS"]
    accuracy = float((logits.argmax(1) == torch.tensor(labels)).float().mean())
    assert facts["held_out_accuracy"] == round(accuracy, 4)
    assert accuracy > 0.15  # it has learned something in one pass
    monkeypatch.setattr(digits, "LEAST_ACCURACY", 0.999)
    with pytest.raises(BuildError, match=r"recognises \d+\.\d% of the held-out digits"):
        digits.make(third, progress)
    assert list(third.iterdir()) == []
