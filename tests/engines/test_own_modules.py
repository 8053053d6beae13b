"""An own module without our layers, from its folder to answers: built, published, served.

A U-Net of images of any size, with files beside it, whose middle is split among the ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from build_scripts import artifact, command, job
from python_mp.machine import python_file
from python_mp.model.errors import InvalidInput
from python_mp.model.manifest import Manifest, configured
from tests.support.replicas import LIMIT, served

CONFIG = """
backend: "python_mp"
max_batch_size: 8
input [ { name: "IMAGE" data_type: TYPE_FP32 dims: [ 1, -1, -1 ] } ]
output [ { name: "MASK" data_type: TYPE_FP32 dims: [ 1, -1, -1 ] } ]
instance_group [ { name: "lead" kind: KIND_CPU }, { name: "shard" kind: KIND_CPU passive: true } ]
parameters { key: "tensor_parallel_size" value { string_value: "2" } }
parameters { key: "module.width" value { string_value: "6" } }
"""
RECIPE = """
family = "module"
source = "make:weights.py"
engine = "%s"
[shapes]
rows = [1, 2, 8]
[[shapes.samples]]
IMAGE = [1, 16, 24]
[[shapes.samples]]
IMAGE = [1, 32, 8]
[accuracy]
samples = 4
max_error = 1e-4
"""
FILES = {
    "module.py": """
from blocks import Down, Middle, Up
from torch import nn

plan = {"middle.up": "colwise", "middle.down": "rowwise"}


def check(batch):
    image = batch["IMAGE"]
    if any(size % 8 for size in image.shape[2:]):
        batch.refuse(image.new_ones(len(image), dtype=bool), "IMAGE needs sides that 8 divides")


class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.down, self.middle, self.up = Down(width), Middle(width), Up(width)

    def forward(self, image):
        half = self.down(image)
        return self.up(self.middle(half), image)
""",
    "blocks/__init__.py": "from .middle import Middle\nfrom .sides import Down, Up\n",
    "blocks/middle.py": """
import torch
from torch import nn


class Middle(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.up, self.down = nn.Linear(width, 7), nn.Linear(7, width)
        self.register_buffer("scale", torch.linspace(0.5, 1, width), persistent=False)

    def forward(self, x):
        y = self.norm(x).permute(0, 2, 3, 1)
        return x + (self.down(self.up(y).relu()) * self.scale).permute(0, 3, 1, 2)
""",
    "blocks/sides.py": """
import torch
from torch import nn


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.convolution = nn.Conv2d(1, width, 3, stride=2, padding=1)

    def forward(self, x):
        return self.convolution(x).relu()


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.out = nn.Conv2d(width + 1, 1, 1)

    def forward(self, x, image):
        return self.out(torch.cat([self.up(x), image], 1))
""",
    "weights.py": """
import torch
from module import Net
from safetensors.torch import save_file


def make(folder, progress):
    torch.manual_seed(0)
    net = Net(6)
    net.middle.norm.running_mean += torch.rand(6)
    save_file(net.state_dict(), folder / "model.safetensors")
    return {"seed": 0}
""",
}


def folder(repository: Path, engine: str) -> Path:
    texts = {**FILES, "config.pbtxt": CONFIG, "recipe.toml": RECIPE % engine}
    for name, text in texts.items():
        path = repository / "net" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return repository / "net"


@pytest.mark.parametrize(
    "engine", ["torch", "onnxruntime", pytest.param("aot_inductor", marks=pytest.mark.campaign)]
)
def test_from_its_folder_to_answers(tmp_path: Path, engine: str) -> None:
    model = folder(tmp_path / "repository", engine)
    made = job.load("net", model.parent, workspace=tmp_path / "workspace")
    assert artifact.build(made, command.progress()).status == "published"
    manifest = Manifest.read(model / "1")
    assert manifest is not None
    code = {"module.py", *(name for name in FILES if name.startswith("blocks/"))}
    assert {name for name in manifest.files if name.endswith(".py")} == code
    random = np.random.default_rng(0)
    sizes = [(16, 24), (16, 24), (8, 8), (40, 16), (16, 24), (8, 8), (12, 16)]
    images = [random.random((1 + n % 2, 1, *size), np.float32) for n, size in enumerate(sizes)]
    config = configured(made.config.source[0], str(model), "1")
    with served(config, tmp_path) as replica:
        *good, refused = replica.ask_all([{"IMAGE": image} for image in images])
        found = [each.result(LIMIT)["MASK"] for each in good]
        with pytest.raises(InvalidInput, match="IMAGE needs sides that 8 divides"):
            refused.result(LIMIT)
        assert replica.metrics()["python_mp_restarts_total"] == 0
    net: Any = python_file.load(model / "module.py", "module").Net(6).eval()
    net.load_state_dict(weights(tmp_path, model))
    with torch.inference_mode():
        for image, mask in zip(images, found, strict=False):
            np.testing.assert_allclose(mask, net(torch.from_numpy(image)), 0, 2e-5)


@pytest.mark.campaign
def test_sizes_that_compiled_code_is_not_for(tmp_path: Path) -> None:
    """One sentence, where nothing else checks them, and the ranks live."""
    model = folder(tmp_path / "repository", "aot_inductor")
    text = FILES["module.py"].replace("def check(batch)", "def unchecked(batch)")
    (model / "module.py").write_text(text)
    made = job.load("net", model.parent, workspace=tmp_path / "workspace")
    assert artifact.build(made, command.progress()).status == "published"
    config = configured(made.config.source[0], str(model), "1")
    with served(config, tmp_path) as replica:
        with pytest.raises(InvalidInput, match=r"the graph cannot compute IMAGE of \[1, 1, 13, 17"):
            replica.ask(IMAGE=np.zeros((1, 1, 13, 17), np.float32)).result(LIMIT)
        assert replica.ask(IMAGE=np.zeros((1, 1, 12, 16), np.float32)).result(LIMIT)
        assert replica.metrics()["python_mp_restarts_total"] == 0


def weights(tmp_path: Path, model: Path) -> dict[str, torch.Tensor]:
    (made := tmp_path / "made").mkdir()
    python_file.load(model / "weights.py", "weights").make(made, None)
    return load_file(made / "model.safetensors")
