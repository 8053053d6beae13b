"""Weights of ONNX graphs lie beside them and are mapped: a rank takes little more than they do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from build_scripts.export import save_onnx
from build_scripts.quiet import quiet
from build_scripts.trace import trace
from tests.support.configs import FP32, model_config, tensor

MOST = 1.3
"""Of the weights' pages: what ONNX Runtime arranges anew, what is computed, and the allocator."""
LOADED = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.engines.onnxruntime import OnnxGraph
from python_mp.sharding.packed import Packed

def pages():
    kinds = "Private_Clean:", "Private_Dirty:", "Shared_Clean:"
    lines = map(str.split, Path("/proc/self/smaps").read_text().splitlines())
    return sum(int(words[1]) << 10 for words in lines if words[0] in kinds)

torch.set_num_threads(1)
before = pages()
graph = OnnxGraph(Path(sys.argv[1]), Alone())
x = np.ones((3, int(sys.argv[2])), np.float32)
y = graph(Packed({"X": x}, torch.device("cpu")), None)["Y"]
print(json.dumps([pages() - before, y[0].tolist()]))
"""


class Layers(nn.Module):
    """Y is X after so many products."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))

    def forward(self, batch: dict[str, torch.Tensor], _: None) -> dict[str, torch.Tensor]:
        return {"Y": self.layers(batch["X"])}


def at(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "XDG_CACHE_HOME": str(home)}


@pytest.mark.parametrize(
    ("count", "width"),
    [(12, 2048), pytest.param(9, 8192, marks=pytest.mark.campaign)],
    ids=["200 MB", "2.4 GB"],
)
def test_a_rank_takes_little_more_than_its_weights(count: int, width: int, tmp_path: Path) -> None:
    x, y = (tensor(name, FP32, width) for name in "XY")
    module, file = Layers(count, width), tmp_path / "rank0.onnx"
    with torch.no_grad(), quiet():
        config = model_config(tmp_path, [x], [y], engine="torch")
        save_onnx(trace(module, config, None, onnx=True), file)
    weights = (tmp_path / "rank0.onnx.data").stat().st_size
    assert weights >= 4 * count * width**2 > 1000 * file.stat().st_size
    with torch.no_grad():
        wanted = module({"X": torch.ones(1, width)}, None)["Y"][0].numpy()
    del module
    program = [sys.executable, "-c", LOADED, str(file), str(width)]
    (home := tmp_path / "home").mkdir()
    said = subprocess.run(
        program, capture_output=True, check=True, env=os.environ | at(home)
    ).stdout
    taken, found = json.loads(said)
    assert list(home.rglob("*")) == []  # ONNX Runtime would write there what runs here.
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert taken <= MOST * weights
