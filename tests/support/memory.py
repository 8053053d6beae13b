"""A checkpoint of any size in the shape of Llama's, and the memory of a tree of processes."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from .checkpoints import packaged

SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "vocab_size": 30522,
}
"""140 MB in float32."""
LARGE = SMALL | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
}
"""1.5 GB."""


def llama(folder: Path, sizes: dict[str, int], dtype: torch.dtype = torch.float32) -> int:
    """Writes a random sentence encoder; returns its weights' bytes."""
    from transformers import LlamaConfig, LlamaModel

    shutil.copytree(packaged().path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = LlamaConfig(**sizes, max_position_embeddings=512)
    said = {"architectures": ["LlamaModel"], "pad_token_id": 0, "bos_token_id": None}
    (folder / "config.json").write_text(
        json.dumps(config.to_dict() | said | {"eos_token_id": None})
    )
    with torch.device("meta"):
        shapes = LlamaModel(config).state_dict()
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(each.shape, generator=generator).mul_(0.02).to(dtype)
        for name, each in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return sum(each.nbytes for each in tensors.values())


def rollup(pid: int) -> dict[str, int]:
    """Bytes of a process's pages by kind ("Rss", "Pss", "Private_Dirty", ...)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kilobytes) << 10 for name, kilobytes in re.findall(r"(\w+): +(\d+) kB", text)}


def mapped(pid: int, name: str) -> int:
    """Bytes of the process's pages of files of that name."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    areas = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text)
    found = [re.search(r"Rss: +(\d+) kB", area) for area in areas if f"/{name}\n" in area]
    return sum(int(each[1]) << 10 for each in found if each)


@dataclass
class Peak:
    """The most that was seen, in bytes.

    Attributes:
        tree: of a process and all that it has started; a page that several share counts once.
        ranks: of the largest rank, shared pages and all.
    """

    tree: int = 0
    rank: int = 0
    when: dict[str, Any] = field(default_factory=dict)

    def look(self, process: psutil.Process) -> None:
        total, each = 0, {}
        for one in [process, *process.children(recursive=True)]:
            with suppress(OSError, psutil.Error):
                found = rollup(one.pid)
                total += found["Pss"]
                each[f"{one.name()} {one.pid}"] = found["Pss"] >> 20
                if one.name().startswith("rank "):
                    self.rank = max(self.rank, found["Rss"])
        if total > self.tree:
            self.tree, self.when = total, each


@contextmanager
def watching(pid: int) -> Iterator[Peak]:
    """Looks all the time."""
    peak, done, process = Peak(), threading.Event(), psutil.Process(pid)

    def look() -> None:
        while not done.wait(0.05):
            with suppress(psutil.Error):
                peak.look(process)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
