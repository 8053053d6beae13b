"""Packages that AOTInductor compiled, one a rank: loaded without compiling anything."""

from __future__ import annotations

import json
import math
import re
import shutil
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from zipfile import ZipFile

import torch
from torch import Tensor
from torch.export.pt2_archive._package import AOTICompiledModel

from ...machine.temporary import temporary_folder
from ...model.errors import InvalidInput, LoadError
from ...model.rank_spec import RankSpec
from ...sharding import ops
from ...sharding.packed import HIDDEN_OUT, Packed
from ...sharding.shard import Shard
from ...sharding.source import Source
from ..stage import Compute, Stage

INPUTS, OUTPUTS, SIZES = "inputs", "outputs", "sizes"
"""Keys of the package's metadata: the graph's input and output names, in order, by commas; and
what must be true of the inputs' sizes, as a list in JSON."""
_LIBRARY = re.compile(r"/tmp/[^/\n]+(?=/.*\.so$)", re.MULTILINE)


def load(spec: RankSpec) -> Stage:
    """Raises LoadError when the package is missing or cannot be loaded here."""
    return Stage.load(spec, partial(_graph, spec.scratch or None))


def _graph(scratch: str | None, shard: Shard, _: Source) -> Compute:
    ops.connect(shard.communicator)
    path = shard.folder / f"rank{shard.world_rank}.pt2"
    return AotGraph(path, shard.device.index, scratch)


class AotGraph:
    """One rank's compiled stage."""

    def __init__(self, path: Path, gpu: int | None = None, scratch: str | None = None) -> None:
        if not path.exists():
            raise LoadError(f"{path} is missing: build the model again")
        folder = mkdtemp(prefix=f"{path.stem}-", dir=scratch or temporary_folder())
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            self._package = _load(path, Path(folder), -1 if gpu is None else gpu)
        except Exception as error:
            raise LoadError(f"{path} cannot be loaded: {error}") from error
        metadata = self._package.get_metadata()
        self._inputs = metadata[INPUTS].split(",")
        self._outputs = metadata[OUTPUTS].split(",")
        self._sizes: list[str] = json.loads(metadata.get(SIZES) or "[]")

    def __call__(self, batch: Packed, hidden: Tensor | None) -> Tensor | dict[str, Tensor]:
        outputs = batch.through(self._run, self._inputs, hidden)
        return outputs.get(HIDDEN_OUT, outputs)

    def _run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._check(given)
        return dict(zip(self._outputs, self._package(*given.values()), strict=True))

    def _check(self, given: Mapping[str, Tensor]) -> None:
        """Raises InvalidInput for sizes that the graph would compute nonsense of."""
        names = {"L": {"tensors": [*given.values()]}, "math": math}
        for said in self._sizes:
            if not eval(said, names):  # As much code as the package that it comes with.
                shapes = (f"{name} of {list(tensor.shape)}" for name, tensor in given.items())
                for number, name in enumerate(given):
                    said = said.replace(f"L['tensors'][{number}].size()", name)
                raise InvalidInput(
                    f"the graph cannot compute {', '.join(shapes)}: it is for sizes where {said};"
                    " send others, or serve the model with engine torch"
                )


def _load(path: Path, folder: Path, gpu: int) -> AOTICompiledModel:
    """torch takes a package apart in /tmp, where it stays when the process is killed. Since 2.13 at
    the latest it takes a folder as well, so that is done here. For older ones a link in `folder`
    says where it is. The front removes both."""
    with ZipFile(path) as package:
        package.extractall(folder)
    try:
        return AOTICompiledModel(_loader(folder, gpu))
    except RuntimeError:  # A package that is damaged fails once more.
        before = _mapped_folders()
        model = AOTICompiledModel(_loader(path, gpu))
        for unpacked in _mapped_folders() - before:
            (folder / unpacked.name).symlink_to(unpacked)
        return model


def _loader(package: Path, gpu: int) -> torch._C._aoti.AOTIModelPackageLoader:
    return torch._C._aoti.AOTIModelPackageLoader(str(package), "model", True, 1, gpu)


def _mapped_folders() -> set[Path]:
    """Folders directly in /tmp from which this process has mapped a library."""
    mapped = _LIBRARY.finditer(Path("/proc/self/maps").read_text())
    return {Path(match[0]) for match in mapped}
