"""One tokenizer for all steps of an ensemble: at the build, at --check and at the load."""

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig as Message

from build_scripts import build
from build_scripts.job import REPOSITORY
from python_mp.model import ensembles, pbtxt
from python_mp.model.errors import LoadError
from server.watch import repository
from tests.support.builds import FakeStage, put_stages, rank_files, verdict
from tests.support.checkpoints import WORDS, tiny_bert, word_piece
from tests.support.triton_stub import load_model

GATE = "[shapes]\ntokens = [1, 2, 8]\n[accuracy]\ncosine_min = 0.9\n"
TOGETHER = """
source = "{source}"
[steps.embed_tokenizer]
family = "tokenizer"
[steps.embed_encoder]
family = "encoder"
shapes = {{ tokens = [1, 2, 8] }}
accuracy = {{ cosine_min = 0.9 }}
"""
STEPS = "embed_encoder", "embed_tokenizer"
SPELLINGS = (
    "a: 1, b: 'x # no comment' # one\n c { d: [1, 2] } c < d: [ 3 ] >",
    'a: -1 b: "say \\"}\\"" c: { d: 1; d: 2 } c: [ { }, { d: 3 } ]',
    "a:1 b:'' c[{}]",
)


def in_any_order(values: Iterable[object]) -> list[object]:
    """A map has no order."""
    return sorted(values, key=repr)


def plain(message: pbtxt.Message) -> object:
    """Without what the two readers need not agree about: numbers, enums and escapes are texts."""
    return {
        name: in_any_order(plain(value) if isinstance(value, dict) else None for value in values)
        for name, values in message.items()
        if values
    }


def theirs(message: Message) -> object:
    found: dict[str, list[object]] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values = [entry(each) for each in value.values()]
        else:
            given = value if field.is_repeated else [value]
            values = [theirs(each) if field.message_type else None for each in given]
        found[field.name] = in_any_order(values)
    return found


def entry(value: object) -> object:
    return {"key": [None], "value": [None if isinstance(value, str) else theirs(value)]}


@pytest.mark.parametrize(
    "model", sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))
)
def test_a_config_is_read_as_protobuf_reads_it(model: str) -> None:
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    assert plain(pbtxt.parse(text)) == theirs(text_format.Parse(text, Message()))


@pytest.mark.parametrize("text", SPELLINGS)
def test_spellings(text: str) -> None:
    assert pbtxt.parse(text).keys() == {"a", "b", "c"}


@pytest.mark.parametrize("text", ["a {", "a: [ 1", "a { b: [ { c: 1 } }"])
def test_a_text_that_ends_too_early_is_no_ensemble(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.pbtxt"
    config.write_text(f"ensemble_scheduling {{}} {text}")
    assert ensembles.edges(config) == ()


def test_tensors_say_who_hands_them_to_whom() -> None:
    assert set(ensembles.edges(REPOSITORY / "embed" / "config.pbtxt")) == {
        ("embed_tokenizer", "embed_encoder"),
        ("embed_tokenizer", "embed_pooler"),
        ("embed_encoder", "embed_pooler"),
    }


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
    shutil.copy(REPOSITORY / "embed_tokenizer" / "model.py", folder / "embed_tokenizer")
    together(folder, "one")
    fakes = {
        "shards": FakeStage(files=rank_files),
        "verify": FakeStage(NEEDS=("fetch", "shards"), files=lambda _job: verdict()),
    }
    put_stages(monkeypatch, **fakes)
    return folder


def together(folder: Path, name: str) -> None:
    """One recipe of both, as the project's own."""
    text = TOGETHER.format(source=folder.parent / name)
    (folder / "embed" / "recipe.toml").write_text(text)


def apart(folder: Path, model: str, name: str) -> None:
    """A recipe for each, as nothing forbids."""
    (folder / "embed" / "recipe.toml").unlink(missing_ok=True)
    family = model.removeprefix("embed_")
    text = f'family = "{family}"\nsource = "{folder.parent / name}"\n'
    (folder / model / "recipe.toml").write_text(text + (GATE if family == "encoder" else ""))


def run(embed: Path, *arguments: str) -> int:
    places = ["--repository", str(embed), "--workspace", str(embed.parent / "workspace")]
    return build.main([*places, *arguments])


def versions(embed: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(embed)) for path in embed.glob("*/*/manifest.json"))


def test_one_checkpoint_is_built_and_kept(embed: Path) -> None:
    assert run(embed) == 0
    assert versions(embed) == [f"{model}/1" for model in STEPS]
    assert run(embed, "--check") == 0


@pytest.mark.parametrize("name", ["embed", "embed_encoder", "embed_tokenizer"])
def test_all_steps_follow_their_recipe(embed: Path, name: str) -> None:
    assert run(embed) == 0
    together(embed, "two")
    assert run(embed, name) == 0
    assert versions(embed) == [f"{model}/{n}" for model in STEPS for n in (1, 2)]
    assert run(embed, "--check", name) == 0


def test_where_one_step_fails_none_is_published(
    embed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(embed) == 0
    together(embed, "two")
    failing = FakeStage(NEEDS=("fetch", "shards"), files=lambda _job: verdict(passed=False))
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


def test_the_wrong_pair_is_named_by_check(embed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong_pair(embed)
    assert run(embed, "--check", "embed_encoder") == 1
    assert "embed_encoder/2 and embed_tokenizer were built with two tok" in capsys.readouterr().out


def test_the_wrong_pair_is_not_loaded(embed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_pair(embed)
    version = embed / "embed_encoder" / "2"
    hashed = json.loads((version / "manifest.json").read_text())["source"]["tokenizer"]
    with pytest.raises(LoadError, match="ensemble embed would answer nonsense"):
        ensembles.admit(version, hashed)
    with pytest.raises(RuntimeError, match="ensemble embed would answer nonsense"):
        load(load_model("embed_tokenizer", monkeypatch), embed, 1)
    before = repository.states(embed)
    assert run(embed) == 0
    ensembles.admit(version, hashed)
    load(load_model("embed_tokenizer", monkeypatch), embed, 2)
    now = repository.states(embed)  # so that the watcher tries again what was refused
    assert now["embed_encoder"] != before["embed_encoder"]
    assert now["embed"] == before["embed"]


def load(module: ModuleType, embed: Path, version: int) -> None:
    folder = str(embed / "embed_tokenizer")
    module.TritonPythonModel().initialize(
        {"model_repository": folder, "model_version": str(version)}
    )


def test_two_pairs_in_one_ensemble_are_told_apart(embed: Path) -> None:
    wrong_pair(embed)  # where encoder and tokenizer have no tensor in common, all is well
    config = embed / "embed" / "config.pbtxt"
    config.write_text(config.read_text().replace('value: "input_ids" }', 'value: "ids" }', 1)
                      .replace('value: "lengths" }', 'value: "more" }', 1))  # fmt: skip
    assert run(embed, "--check", "embed_encoder") == 0
