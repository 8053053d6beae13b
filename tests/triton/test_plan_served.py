"""The planner behind a real Triton: a module of a few numbers, whose better layout is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from build_scripts.new.__main__ import main as new
from build_scripts.plan.__main__ import main as plan

MODULE = """
import time
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 2)
    def forward(self, x):
        time.sleep(0.1)  # A batch costs the same however large, and nothing where it is exported.
        return self.up(x)
"""


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_the_better_bound_is_found_saved_and_remembered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, models, workspace = (tmp_path / name for name in ("checkpoint", "models", "work"))
    checkpoint.mkdir()
    (checkpoint / "module.py").write_text(MODULE)
    save_file(
        {"up.weight": torch.ones(2, 4), "up.bias": torch.zeros(2)}, checkpoint / "a.safetensors"
    )
    tensors = ["--input=X:FP32:4", "--output=Y:FP32:2"]
    assert new(["slow", str(checkpoint), *tensors, f"--repository={models}"]) == 0
    config = models / "slow" / "config.pbtxt"
    bound = '"max_batch_tokens" value {{ string_value: "{}" }}'
    text = config.read_text().replace(bound.format(64), bound.format(8))
    assert text != config.read_text()
    config.write_text(text)
    recipe = models / "slow" / "recipe.toml"
    before = config.read_text(), recipe.read_text()
    command = ["slow", f"--repository={models}", f"--workspace={workspace}", "--concurrency=48"]
    assert plan([*command, "--budget-minutes=4", "--save"]) == 0
    said = capsys.readouterr().out
    assert "chosen" in said
    rates = dict(re.findall(r"a batch +([\d.]+) .* (now|chosen)\b", said))
    by_verdict = {verdict: float(rate) for rate, verdict in rates.items()}
    assert by_verdict["chosen"] > 3 * by_verdict["now"], said
    assert (config.read_text(), recipe.read_text()) != before
    kept = (workspace / "slow" / "plan.jsonl").read_text().splitlines()
    assert len(kept) > 4
    assert (workspace / "slow" / "plan.svg").read_text().startswith("<svg")
