"""module.py as a torch module and a plan: which module, its arguments, inputs, outputs, stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from python_mp.model.errors import LoadError
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding import source
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard

CPU = torch.device("cpu")
HEAD = "import torch\nfrom torch import nn\nfrom blocks import Block\n"
BLOCKS = """from torch import nn
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 5), nn.Linear(5, width)
    def forward(self, x):
        return x + self.down(x).relu() @ self.up.weight.T
"""
EVERYTHING = """
class Net(nn.Module):
    '''What has no parallel layer: convolutions, norms with buffers, recurrence, tables, bags.'''
    def __init__(self, width: int = 6, *, scale: float = 1.0, name="net", wide: "bool" = False):
        super().__init__()
        self.convolution = nn.utils.parametrizations.weight_norm(nn.Conv1d(1, width, 3, padding=1))
        self.batch_norm = nn.BatchNorm1d(width)
        self.lstm = nn.LSTM(width, 4, 2, bidirectional=True, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.table = nn.Embedding(9, 8)
        self.bag = nn.ParameterDict({"a": nn.Parameter(torch.ones(8)), "b": torch.ones(8)})
        self.register_buffer("window", torch.hann_window(8), persistent=False)
        self.register_buffer("offset", torch.ones(8))
        self.rate = torch.linspace(0, scale, 3)[1].item()
        self.blocks = nn.ModuleList([Block(8), Block(8), Block(8)])
        self.out = nn.Linear(8, 9, bias=False)
        self.out.weight = self.table.weight
        nn.init.zeros_(self.out.weight)
        self.seen = (width, scale, name, wide)
    def forward(self, signal, ids, more=None):
        x = self.batch_norm(self.convolution(signal[:, None])).transpose(1, 2)
        x = self.encoder(self.lstm(x)[0]) * self.window + self.bag["a"] * self.offset
        x = x + self.table(ids)[:, None] * self.rate
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean(1)), x.amax((1, 2))
layers = "blocks"
"""


def read(folder: Path, text: str) -> source.Source:
    folder.mkdir(exist_ok=True)
    (folder / "module.py").write_text(HEAD + text)
    (folder / "blocks.py").write_text(BLOCKS)
    return source.read(folder)


def shard(folder: Path, inputs: str, outputs: str = "Y", **more: Any) -> Shard:
    names = {"inputs": tuple(inputs.split()), "outputs": tuple(outputs.split())}
    place = {"rank": 0, "size": 1, "stage": 0, "stages": 1, "parameters": {}} | more
    return Shard(
        **place, dtype=torch.float32, device=CPU, folder=folder, communicator=Alone(), **names
    )


def weights(folder: Path, text: str) -> torch.nn.Module:
    """Random ones of the module's, saved as users do, each tensor once."""
    torch.manual_seed(0)
    made: torch.nn.Module = read(folder, text).whole.__self__._made(shard(folder, "X"))  # type: ignore[union-attr]
    tensors = {
        n: torch.rand_like(t) if t.is_floating_point() else t for n, t in made.state_dict().items()
    }
    save_file({n: t for n, t in tensors.items() if n != "out.weight"}, folder / "model.safetensors")
    made.load_state_dict(
        tensors | {"out.weight": tensors["table.weight"]} if "out.weight" in tensors else tensors
    )
    return made


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_any_module_is_served_whole_or_in_stages(tmp_path: Path, stages: int) -> None:
    """Weights are assigned, buffers computed, tied weights tied; in stages as in one piece."""
    made = weights(tmp_path, EVERYTHING)
    x = {"SIGNAL": np.random.default_rng(0).random((3, 7), np.float32), "ids": np.array([1, 8, 0])}
    with torch.inference_mode():
        logits, most = made(torch.from_numpy(x["SIGNAL"]), torch.from_numpy(x["ids"]))
        found = read(tmp_path, EVERYTHING)
        assert found.whole is not None
        hidden: Any = None
        for stage in range(stages):
            part = shard(tmp_path, "SIGNAL ids", "LOGITS MOST", stage=stage, stages=stages)
            module = found.build(part)
            assert not any(each.is_meta for each in (*module.parameters(), *module.buffers()))
            assert module.module.out.weight is module.module.table.weight
            held = sum("blocks" in name for name, _ in module.named_parameters())
            assert held == 4 * len(part.layers(3))
            hidden = module(Packed(x, CPU), hidden)
        whole = found.whole(shard(tmp_path, "SIGNAL ids", "LOGITS MOST"))(Packed(x, CPU), None)
    for outputs in (hidden, whole):
        torch.testing.assert_close(outputs, {"LOGITS": logits, "MOST": most})


ONE = "class A(nn.Linear):\n    def __init__(self, size: int = 2): super().__init__(size, 2)\n"
TWO = ONE + "class B(nn.Module):\n    def forward(self, x): return x\n"


def test_which_module_and_its_arguments(tmp_path: Path) -> None:
    def made(text: str, **parameters: str) -> Any:
        save_file(
            {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "model.safetensors"
        )
        return read(tmp_path, text).build(shard(tmp_path, "X", parameters=parameters)).module

    assert type(made(ONE)).__name__ == "A"
    assert type(made(TWO + "module = A")).__name__ == "A"
    assert type(made(TWO + "def module(): return A(2)")).__name__ == "A"
    uses = "class C(nn.Sequential):\n    def __init__(self): super().__init__(A())\n"
    assert type(made(ONE + uses + "module = A")).__name__ == "A"
    weights(tmp_path, EVERYTHING)
    said = {"width": "6", "scale": "0.5", "name": "x", "wide": "true"}
    net = read(tmp_path, EVERYTHING).build(shard(tmp_path, "SIGNAL ids", parameters=said))
    assert net.module.seen == (6, 0.5, "x", True)


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("", {}, r"neither a torch.nn.Module nor a function build\(shard\); see README"),
        (TWO, {}, "has the modules A, B: say which one is served, as in module = B"),
        ("module = nn.Linear(2, 2)", {}, "module must be a class or a function"),
        ("module = lambda: 3", {}, "must return a torch.nn.Module, not 3"),
        (ONE + "plan = 'colwise'", {}, "plan must be a dict"),
        (ONE + "layers = ['blocks']", {}, "layers must be the name"),
        (ONE, {"size": 2}, "tensor_parallel_size is 2, but module.py does not say how"),
        (ONE, {"stages": 2}, "pipeline_parallel_size is 2, but module.py does not say what"),
        (ONE + "layers = 'b'", {"stages": 2}, "layers is 'b', which is no ModuleList or Seq"),
        (ONE, {"parameters": {"sise": "2"}}, "config.pbtxt has module.sise, which A does not take"),
        (ONE, {"parameters": {"size": "two"}}, "module.size of config.pbtxt is 'two', no int"),
        ("class A(nn.Linear): pass", {}, "A raised TypeError: .* arguments are the parameters mod"),
        ("class A(nn.LazyLinear):\n    def __init__(self): super().__init__(2)", {}, "lazy module"),
        (ONE, {"inputs": "X Z"}, r"forward\(input\) does not fit the inputs X, Z of config.pbtxt"),
        ("class A(nn.Module):\n    def forward(self, x, y): ...", {}, "y stands on one side only"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, more: Any, said: str) -> None:
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=said):
        read(tmp_path, text).build(shard(tmp_path, more.pop("inputs", "X"), **more))


@pytest.mark.parametrize(
    ("forward", "inputs", "outputs", "expected"),
    [
        ("x: return x + 1", "ANY", "Y", {"Y": 2}),
        ("a, b: return a + b, a - b", "A B", "P Q", {"P": 3, "Q": -1}),
        ("a, b: return {'q': a - b, 'P': a + b}", "B a", "P Q", {"P": 3, "Q": 1}),
        ("batch, **rest: return batch['A'].float() + rest['B']", "A B", "Y", {"Y": 3}),
        ("a, b=None: return a if b is None else b", "a", "Y", {"Y": 1}),
    ],
)
def test_inputs_and_outputs_by_name(
    tmp_path: Path, forward: str, inputs: str, outputs: str, expected: dict[str, float]
) -> None:
    text = (
        f"class Net(nn.Module):\n    def forward(self, {forward.replace(': return', '): return')}"
    )
    save_file({"unused": torch.ones(1)}, tmp_path / "model.safetensors")
    module = read(tmp_path, text).build(shard(tmp_path, inputs, outputs))
    x = {name: np.full((1,), n + 1, np.float64) for n, name in enumerate(inputs.split())}
    found: dict[str, Tensor] = module(Packed(x, CPU), None)
    assert {name: y.item() for name, y in found.items()} == expected
    assert all(y.dtype is torch.float32 for y in found.values())
