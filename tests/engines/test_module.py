"""A module of one's own may treat what it is given as its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from build_scripts import artifact, command, job
from build_scripts.errors import BuildError
from build_scripts.job import Job
from tests.support.configs import FP32, INT32, model_config, module_config, tensor
from tests.support.replicas import LIMIT, served

IN_PLACE = """
import torch
from torch import nn


def check(batch):
    batch["X"].sub_(8)


class Halved(nn.Module):
    def __init__(self, shard):
        super().__init__()
        self.shard = shard

    def forward(self, batch, hidden):
        x = batch["X"].div_(2)
        batch.cu_seqlens.add_(1)
        return self.shard.all_reduce(x.clone()) if hidden is None else {"Y": hidden + x}


build = Halved
"""


def test_ranks_that_work_in_place_do_not_spoil_each_others_inputs(tmp_path: Path) -> None:
    """They read the same memory."""
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    config = module_config(tmp_path, IN_PLACE, (-1,), ragged=True, **sizes)
    with served(config, tmp_path) as replica:
        for first in range(0, 40, 8):
            asked = [np.arange(first, first + n, dtype=np.float32)[None] for n in range(1, 9)]
            futures = replica.ask_all([{"X": each} for each in asked])
            for each, future in zip(asked, futures, strict=True):
                expected = (each - 8) / 2 * 3
                np.testing.assert_array_equal(future.result(LIMIT)["Y"], expected)


# Two stages with a dict between them: no graph has one.
BY_NAME = """
from torch import nn


class Net(nn.Module):
    def __init__(self, shard):
        super().__init__()
        self.is_last = shard.is_last

    def forward(self, batch, hidden):
        x = batch["X"]
        hidden = hidden or {"a": x, "b": -x}
        return {"Y": hidden["a"] - hidden["b"]} if self.is_last else hidden


build = Net
"""
TWO_STAGES = """
backend: "python_mp"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] } ]
instance_group [ { name: "lead" kind: KIND_CPU }, { name: "shard" kind: KIND_CPU passive: true } ]
parameters { key: "pipeline_parallel_size" value { string_value: "2" } }
"""
RECIPE = """
family = "module"
source = "make:weights.py"
%s
[shapes]
rows = [1, 2, 8]
[accuracy]
max_error = 1e-4
"""
WEIGHTS = """
import numpy as np
from safetensors.numpy import save_file


def make(folder, progress):
    save_file({"unused": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return {}
"""


def job_of(home: Path, engine: str, module: str) -> Job:
    (folder := home / "models" / "net").mkdir(parents=True)
    texts = {"module.py": module, "weights.py": WEIGHTS, "config.pbtxt": TWO_STAGES}
    for name, text in {**texts, "recipe.toml": RECIPE % engine}.items():
        (folder / name).write_text(text)
    return job.load("net", folder.parent, workspace=home / "workspace")


@pytest.mark.parametrize("engine", ["onnxruntime", "aot_inductor"])
def test_stages_of_graphs_hand_on_one_tensor(tmp_path: Path, engine: str) -> None:
    """Where a module hands on several by name, the build says so."""
    sentence = "A stage hands on a, b by name; between graphs there is one tensor"
    with pytest.raises(BuildError, match=sentence):
        artifact.build(job_of(tmp_path, f'engine = "{engine}"', BY_NAME), command.progress())


def test_torch_hands_on_several_by_name(tmp_path: Path) -> None:
    result = artifact.build(job_of(tmp_path, "", BY_NAME), command.progress())
    assert (result.engine, result.status) == ("torch", "published")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ('{"Z": x}', "the module returned Z, and not Y, which config.pbtxt has"),
        ("x", "the last stage must return {output name: tensor}, not a Tensor"),
    ],
)
def test_other_outputs_than_config_has_are_refused(
    tmp_path: Path, made: str, sentence: str
) -> None:
    module = BY_NAME.replace('{"Y": hidden["a"] - hidden["b"]}', made)
    with pytest.raises(BuildError, match=sentence):
        artifact.build(job_of(tmp_path, 'engine = "torch"', module), command.progress())


# Words and sound of their own lengths: each word sees all of its sequence, and gets the mean sound.
TWO_LENGTHS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, IDS, SOUND, batch):
        x = self.words(IDS)[..., None]
        x = batch.attend(x, x, x)
        sound = batch.of("SOUND")
        sums = torch.segment_reduce(SOUND, "sum", lengths=sound.cu_seqlens.diff())
        means = sums / sound.cu_seqlens.diff().clamp(min=1)[:, None]
        x = self.out(x) + means.repeat_interleave(batch.cu_seqlens.diff(), 0)
        return {"Y": x, "Z": SOUND + sound.positions[:, None], "MEAN": means}

plan = {"words": "colwise", "out": "rowwise"}
"""


@pytest.mark.parametrize("size", [1, 2])
def test_inputs_of_their_own_lengths_some_empty(tmp_path: Path, size: int) -> None:
    (version := tmp_path / "1").mkdir()
    (version / "module.py").write_text(TWO_LENGTHS)
    random = torch.Generator().manual_seed(0)
    shapes = {"words.weight": (9, 4), "out.weight": (4, 4), "out.bias": (4,)}
    w = {name: torch.rand(shape, generator=random) for name, shape in shapes.items()}
    save_file(w, version / "model.safetensors")
    inputs = [
        tensor("IDS", INT32, -1, allow_ragged_batch=True),
        tensor("SOUND", FP32, -1, 4, allow_ragged_batch=True),
        *(tensor(name, INT32, 1) for name in "NM"),
    ]
    outputs = [tensor("Y", FP32, -1, 4), tensor("Z", FP32, -1, 4), tensor("MEAN", FP32, 4)]
    sizes: dict[str, Any] = {"tensor_parallel_size": size, "min_sequence_length": 0}
    said = "N:IDS+Y, M:SOUND+Z"
    config = model_config(tmp_path, inputs, outputs, engine="torch", lengths=said, **sizes)
    numbers = np.random.default_rng(0)
    requests = []
    for pairs in ([(3, 5)], [(0, 2), (4, 0)], [(0, 0)], [(1, 1), (0, 0), (2, 3)]):
        n, m = (np.array(each, np.int32)[:, None] for each in zip(*pairs, strict=True))
        ids = numbers.integers(0, 9, (len(pairs), n.max())).astype(np.int32)
        sound = numbers.random((len(pairs), m.max(), 4), np.float32)
        requests.append({"IDS": ids, "SOUND": sound, "N": n, "M": m})
    with served(config, tmp_path) as replica:
        answers = [each.result(LIMIT) for each in replica.ask_all(requests)]
        alone = replica.ask(**requests[2]).result(LIMIT)
        assert replica.metrics()["python_mp_restarts_total"] == 0
    assert alone["Y"].shape == (1, 0, 4)
    for request, answer in zip(requests, answers, strict=True):
        for i, (n, m) in enumerate(zip(request["N"][:, 0], request["M"][:, 0], strict=True)):
            x = w["words.weight"][torch.from_numpy(request["IDS"][i, :n])]
            sound = torch.from_numpy(request["SOUND"][i, :m])
            mean = sound.sum(0) / max(m, 1)
            scores = torch.softmax(x.T[:, :, None] * x.T[:, None], -1)  # Each column is a head.
            attended = (scores @ x.T[:, :, None])[..., 0].T
            y = attended @ w["out.weight"].T + w["out.bias"] + mean
            np.testing.assert_allclose(answer["Y"][i, :n], y, 0, 1e-5)
            np.testing.assert_allclose(answer["MEAN"][i], mean, 0, 1e-5)
            np.testing.assert_allclose(
                answer["Z"][i, :m], sound + torch.arange(m)[:, None], 0, 1e-5
            )
