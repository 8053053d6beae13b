"""The classifier's training, in small: the same twice, the served module, never below the bound."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file

from build_scripts import digits
from build_scripts.errors import BuildError
from python_mp.rank import source
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.shard import Shard


@pytest.fixture
def progress() -> Progress:
    return Progress(console=Console(file=StringIO()))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass over the images, and nothing asked of it."""
    monkeypatch.setattr(digits, "EPOCHS", 1)
    monkeypatch.setattr(digits, "LEAST_ACCURACY", 0.0)


def folder(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir()
    return path


@pytest.mark.usefixtures("brief")
def test_two_trainings_write_the_same_bytes(tmp_path: Path, progress: Progress) -> None:
    settings = torch.get_num_threads(), torch.is_grad_enabled()
    first, second = folder(tmp_path, "first"), folder(tmp_path, "second")
    facts = digits.make(first, progress)
    torch.manual_seed(7)  # nobody else's random numbers matter
    with torch.no_grad():
        assert digits.make(second, progress) == facts
    one, other = (path / "model.safetensors" for path in (first, second))
    assert one.read_bytes() == other.read_bytes()
    assert settings == (torch.get_num_threads(), torch.is_grad_enabled())
    assert facts["held_out_samples"] == 360
    assert {name: value.shape for name, value in load_file(one).items()} == dict(digits.shapes())


@pytest.mark.usefixtures("brief")
def test_what_is_saved_is_what_was_judged(tmp_path: Path, progress: Progress) -> None:
    """Read back as a rank reads it, the weights have the accuracy that the manifest will say."""
    facts = digits.make(tmp_path, progress)
    shard = Shard(0, 1, 0, 1, torch.float32, torch.device("cpu"), tmp_path, {}, Alone())
    module = source.read(digits.CLASSIFIER).build(shard)
    requests, labels = digits.samples(tmp_path)
    images = torch.from_numpy(np.concatenate([request["PIXELS"] for request in requests]))
    logits = module({"PIXELS": images}, None)["LOGITS"]
    accuracy = float((logits.argmax(1) == torch.tensor(labels)).float().mean())
    assert facts["held_out_accuracy"] == round(accuracy, 4)
    assert accuracy > 0.15  # it has learned something in one pass


@pytest.mark.usefixtures("brief")
def test_too_few_recognised_is_an_error(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "LEAST_ACCURACY", 0.999)
    with pytest.raises(BuildError, match=r"recognises \d+\.\d% of the held-out digits"):
        digits.make(tmp_path, progress)
    assert list(tmp_path.iterdir()) == []


def test_held_out_digits_are_not_trained_with() -> None:
    images, labels, held_out, expected = digits.digits()
    assert len(labels) + len(expected) == 1797
    assert np.bincount(expected).min() >= 34
    seen = {image.tobytes() for image in images.numpy()}
    assert not any(image.tobytes() in seen for image in held_out.numpy())


def test_moved_images_stay_what_they_show() -> None:
    images = digits.digits()[0][:100]
    random = torch.Generator().manual_seed(0)
    moved = digits.moved(images, random)
    assert moved.shape == images.shape
    assert not torch.equal(moved, images)
    flat, other = images.flatten(1), moved.flatten(1)
    assert torch.cosine_similarity(flat, other).min() > 0.7
    assert ((moved >= 0) & (moved <= 1)).all()


def test_images_to_try(tmp_path: Path) -> None:
    assert digits.main(["--images", str(tmp_path / "new")]) == 0
    _, labels = digits.samples(tmp_path)
    files = sorted((tmp_path / "new").iterdir(), key=lambda file: int(file.stem.split("-")[1]))
    assert [int(file.name[0]) for file in files] == labels[: len(files)]
    with Image.open(files[0]) as image:
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX)) / 255
    np.testing.assert_allclose(small, digits.samples(tmp_path)[0][0]["PIXELS"][0], atol=1 / 255)
