"""One tokenizer for all steps of an ensemble: at the build, at --check and at the load."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig as Message

from build_scripts import build
from build_scripts.job import REPOSITORY
from python_mp.model import ensembles, pbtxt
from python_mp.model.errors import LoadError
from python_mp.model.manifest import Manifest
from server.watch import repository
from tests.support.builds import FakeStage, judge, put_stages, rank_files
from tests.support.checkpoints import WORDS, tiny_bert, word_piece
from tests.support.triton_stub import arguments, load_step

GATE = "[shapes]\ntokens = [1, 2, 8]\n[accuracy]\ncosine_min = 0.9\n"
TOGETHER = """
source = "{source}"
[steps.embed_tokenizer]
family = "tokenizer"
[steps.embed_encoder]
family = "transformers"
shapes = {{ tokens = [1, 2, 8] }}
accuracy = {{ cosine_min = 0.9 }}
"""
STEPS = "embed_encoder", "embed_tokenizer"


@pytest.mark.parametrize("model", ["embed", "classify", "embed_encoder"])
def test_tensors_say_who_hands_them_to_whom(model: str) -> None:
    """As protobuf reads it."""
    config = REPOSITORY / model / "config.pbtxt"
    steps = text_format.Parse(config.read_text(), Message()).ensemble_scheduling.step
    expected = {
        (maker.model_name, reader.model_name)
        for maker in steps
        for reader in steps
        if {*maker.output_map.values()} & {*reader.input_map.values()}
    }
    assert set(ensembles.edges(config)) == expected


def test_spellings() -> None:
    for text in (
        "a: 1, b: 'x # no comment' # one\n c { d: [1, 2] } c < d: [ 3 ] >",
        'a: -1 b: "say \\"}\\"" c: { d: 1; d: 2 } c: [ { }, { d: 3 } ]',
        "a:1 b:'' c[{}]",
    ):
        assert pbtxt.parse(text).keys() == {"a", "b", "c"}


@pytest.mark.parametrize("text", ["a {", "a: [ 1", "a { b: [ { c: 1 } }"])
def test_a_text_that_ends_too_early_is_no_ensemble(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.pbtxt"
    config.write_text(f"ensemble_scheduling {{}} {text}")
    assert ensembles.edges(config) == ()


def test_a_manifest_of_0_1_says_nothing_of_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "manifest.json").write_text('{"format": 2}')
    assert ensembles.newest_tokenizer(tmp_path) is None


@pytest.fixture
def embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with `embed`, of the checkpoint `one`; `two` has another vocabulary."""
    for name in ("one", "two"):
        tiny_bert(tmp_path / name)
    word_piece([*WORDS[:5], "q2", *WORDS[6:]]).save(str(tmp_path / "two" / "tokenizer.json"))
    folder = tmp_path / "repository"
    for model in ("embed", "embed_encoder", "embed_tokenizer"):
        (folder / model).mkdir(parents=True)
        text = (REPOSITORY / model / "config.pbtxt").read_text().replace("384", "8")
        (folder / model / "config.pbtxt").write_text(text)
    together(folder, "one")
    put_stages(monkeypatch, shards=FakeStage(files=rank_files), verify=judge())
    return folder


def together(folder: Path, name: str) -> None:
    """One recipe of both, as the project's own."""
    text = TOGETHER.format(source=folder.parent / name)
    (folder / "embed" / "recipe.toml").write_text(text)


def apart(folder: Path, model: str, name: str) -> None:
    """A recipe for each, as nothing forbids."""
    (folder / "embed" / "recipe.toml").unlink(missing_ok=True)
    family = "tokenizer" if model == "embed_tokenizer" else "transformers"
    text = f'family = "{family}"\nsource = "{folder.parent / name}"\n'
    config = folder / model / "config.pbtxt"
    if family == "transformers" and "task" not in config.read_text():
        with config.open("a") as file:
            file.write('parameters { key: "task" value { string_value: "embed" } }')
    (folder / model / "recipe.toml").write_text(text + (GATE if family == "transformers" else ""))


def run(embed: Path, *arguments: str) -> int:
    places = ["--repository", str(embed), "--workspace", str(embed.parent / "workspace")]
    return build.main([*places, *arguments])


def versions(embed: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(embed)) for path in embed.glob("*/*/manifest.json"))


@pytest.mark.parametrize("name", ["embed", "embed_encoder", "embed_tokenizer"])
def test_all_steps_follow_their_recipe(embed: Path, name: str) -> None:
    assert run(embed) == 0
    assert versions(embed) == [f"{model}/1" for model in STEPS]
    assert run(embed, "--check") == 0
    together(embed, "two")
    assert run(embed, name) == 0
    assert versions(embed) == [f"{model}/{n}" for model in STEPS for n in (1, 2)]
    assert run(embed, "--check", name) == 0


def test_where_one_step_fails_none_is_published(
    embed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(embed) == 0
    together(embed, "two")
    failing = judge(passed=False)
    monkeypatch.setitem(sys.modules, "build_scripts.verify", failing)
    failing.decides = {"worse": 1}
    assert run(embed) == 1
    assert versions(embed) == [f"{model}/1" for model in STEPS]


def wrong_pair(embed: Path) -> None:
    """The encoder is of another checkpoint than the tokenizer."""
    for model in STEPS:
        apart(embed, model, "one")
    assert run(embed) == 0
    for model in STEPS:
        apart(embed, model, "two")
    assert run(embed, "embed_encoder") == 0


def test_the_wrong_pair_is_named_by_check_and_not_loaded(
    embed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_pair(embed)
    assert run(embed, "--check", "embed_encoder") == 1
    assert "embed_encoder/2 and embed_tokenizer were built with two tok" in capsys.readouterr().out
    version = embed / "embed_encoder" / "2"
    built = Manifest.read(version)
    with pytest.raises(LoadError, match="ensemble embed would answer nonsense"):
        ensembles.admit(version, built)
    with pytest.raises(RuntimeError, match="ensemble embed would answer nonsense"):
        load(load_step("tokenizer", monkeypatch), embed, 1)
    before = repository.states(embed)
    assert run(embed) == 0
    ensembles.admit(version, built)
    load(load_step("tokenizer", monkeypatch), embed, 2)
    now = repository.states(embed)  # so that the watcher tries again what was refused
    assert now["embed_encoder"] != before["embed_encoder"]
    assert now["embed"] == before["embed"]


def load(module: ModuleType, embed: Path, version: int) -> None:
    config = '{"input": [{"name": "TEXT"}], "output": [{"name": "INPUT_IDS"}]}'
    given = arguments(config, embed / "embed_tokenizer", "embed_tokenizer_0")
    module.TritonPythonModel().initialize(given | {"model_version": str(version)})


def test_two_pairs_in_one_ensemble_are_told_apart(embed: Path) -> None:
    wrong_pair(embed)  # where encoder and tokenizer have no tensor in common, all is well
    config = embed / "embed" / "config.pbtxt"
    config.write_text(config.read_text().replace('value: "input_ids" }', 'value: "ids" }', 1)
                      .replace('value: "lengths" }', 'value: "more" }', 1))  # fmt: skip
    assert run(embed, "--check", "embed_encoder") == 0
