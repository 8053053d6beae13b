"""A model repository of 0.1, as commit 6e80926 made it: each step is named in a sentence, with the
command that renews it. Of its `ranker` three files are kept beside tests/support/builds.py."""

import shutil
from pathlib import Path

import pytest

from build_scripts import build, triton_config
from build_scripts.job import REPOSITORY
from python_mp.model import admission, ensembles
from python_mp.model.errors import LoadError
from python_mp.model.manifest import Manifest, configured
from tests.support import builds
from tests.support.builds import FakeStage, put_stages, rank_files, verdict

OLD = Path(builds.__file__).parent / "upgrade" / "ranker"
COMMAND = "run `python -m build_scripts.build ranker`"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder in a repository of its own."""
    model = tmp_path / "repository" / "ranker"
    (model / "1").mkdir(parents=True)
    for name, place in {"config.pbtxt": ".", "recipe.toml": ".", "manifest.json": "1"}.items():
        shutil.copy(OLD / name, model / place)
    for place in (model, model / "1"):
        shutil.copy(REPOSITORY / "ranker" / "module.py", place)
    fakes = {
        "shards": FakeStage(files=rank_files),
        "verify": FakeStage(NEEDS=("fetch", "shards"), files=lambda _job: verdict()),
    }
    put_stages(monkeypatch, **fakes)
    return model


def run(model: Path, *arguments: str) -> int:
    places = "--repository", str(model.parent), "--workspace", str(model.parent.parent / "work")
    return build.main([*places, *arguments])


def load(model: Path, version: str) -> str:
    """What the backend says at the load; nothing where it takes the version."""
    given = triton_config.model_config(model, "torch", "float32").source[0]
    try:
        admission.admit(configured(given, str(model), version))
    except LoadError as error:
        return str(error)
    return ""


def edit(model: Path, old: str, new: str) -> None:
    recipe = model / "recipe.toml"
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))


def test_from_0_1_sentence_by_sentence(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(old, "1") == f"{old}/1/manifest.json is of format 2, but 3 is read now; {COMMAND}"
    assert run(old, "ranker") == 1
    said = capsys.readouterr().err
    assert "recipe.toml is of 0.1: [layout] stands in config.pbtxt only now" in said
    assert f"Take the table out of the recipe, and {COMMAND}" in said
    edit(old, "[layout]\ntensor_parallel_size = 2\n", "")
    assert run(old, "ranker") == 1
    assert "has no file build_scripts.ranker, which make:build_scripts.ranker" in (
        capsys.readouterr().err
    )
    shutil.copy(REPOSITORY / "ranker" / "seeded.py", old)
    edit(old, "make:build_scripts.ranker", "make:seeded.py")
    assert run(old, "--check") == 1
    assert COMMAND in capsys.readouterr().out
    assert run(old, "ranker") == 0
    assert run(old, "--check") == 0
    assert load(old, "2") == ""
    assert sorted(path.name for path in old.iterdir() if path.is_dir()) == ["1", "2"]


def test_versions_of_0_1_do_not_hold_up_their_neighbours(old: Path) -> None:
    with pytest.raises(LoadError, match="is of format 2"):
        Manifest.read(old / "1")
    assert ensembles.newest_tokenizer(old) is None
