"""What each rank of a layout will hold: its module is made without weights, so that whatever a
layout cannot have is said before anything is built."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from build_scripts import checkpoint_folder
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.model.errors import PythonMpError
from python_mp.sharding.families.task import Task


def narrow(folder: Path) -> list[str]:
    """Patterns of the layers that int8 loses most at: the MLPs' second products, whose inputs have
    outliers."""
    from python_mp.sharding.families import plans, skeleton, transformers

    config = transformers.read(folder / "config.json")
    found = plans.plan(config, skeleton.make(config), 1)
    names = [name for name, how in found.items() if how.way == "rowwise"]
    mlps = [name for name in names if not re.search("(?i)att", name)]
    return sorted({re.sub(r"\.\d+\.", _any_number, name) for name in mlps})


def _any_number(found: re.Match[str]) -> str:
    return f".{'[0-9]' * (len(found[0]) - 2)}."


def of_checkpoint(job: Job, folder: Path, task: Task) -> list[int]:
    """Bytes of the weights of each rank, as the engine torch holds them.

    Raises:
        BuildError: the model cannot be split so.
    """
    from python_mp.sharding.families import skeleton, transformers

    try:
        whole = skeleton.make(transformers.read(folder / "config.json"), task.kind).state_dict()
    except PythonMpError as error:
        raise BuildError(str(error)) from None
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    with tempfile.TemporaryDirectory(dir=job.folder.parent) as version:
        shutil.copyfile(folder / "config.json", Path(version, "config.json"))
        task.write(Path(version))
        return _nbytes(job, Path(version), shapes)


def of_module(job: Job, folder: Path) -> list[int]:
    """The same for a module of one's own; nothing where it reads its weights as it is made.

    Raises:
        BuildError: the module, its plan or its weights do not go together.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException

    try:
        return _nbytes(job, job.folder, checkpoint_folder.tensors(folder))
    except DataDependentOutputException:
        return []


def _nbytes(job: Job, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from build_scripts import ranks
    from python_mp.rank.collectives.communicator import Alone
    from python_mp.sharding import source
    from python_mp.sharding.slices import Recorder
    from python_mp.sharding.weights import Tensors

    found = []
    try:
        model = source.read(folder)
        with FakeTensorMode(allow_non_fake_inputs=True):  # Shapes without memory.
            tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
            for rank in range(job.world_size):
                shard = ranks.shard(job, rank, folder, Alone())
                recorder = Recorder(Tensors(tensors, shard.dtype))
                model.build(replace(shard, given=recorder))
                found.append(sum(each.nbytes for each in recorder.tensors().values()))
    except PythonMpError as error:
        raise BuildError(f"{job.model} cannot be served as {job.layout}: {error}") from None
    return found
