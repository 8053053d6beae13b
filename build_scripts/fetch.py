"""Stage `fetch`: have the source at hand, whole, and know what it is.

    package:NAME               a checkpoint inside an installed package
    FOLDER                     a checkpoint in a folder
    FILE.gguf                  one of llama.cpp; a folder or a package may hold it, too
    hub:OWNER/NAME@COMMIT      one from the Hugging Face hub; no code and no pickle
    make:FILE.py               made by a file beside the recipe: its make(folder, progress) writes
                               the checkpoint and returns facts for the manifest

What lies on this machine already is not copied.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.progress import Progress

from build_scripts import (
    checkpoint_folder,
    code,
    gguf_folder,
    hub,
    storage,
    tasks,
    tokenizer_files,
    triton_config,
)
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.checkpoint_tokenizer import written
from build_scripts.errors import BuildError
from build_scripts.job import PROJECT, Job
from python_mp.sharding.checkpoint import WEIGHTS

NEEDS: tuple[str, ...] = ()
TOOLS = ("numpy", "pillow", "safetensors", "sentencepiece", "tokenizers", "torch", "transformers")
RECORD, CHECKPOINT = "source.json", "checkpoint"
KINDS = "package:NAME, a folder, FILE.gguf, hub:OWNER/NAME@COMMIT or make:FILE.py"


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was fetched.

    Attributes:
        folder: where its files lie.
        id: the recipe's source, with the revision that was got.
        sha256: over the names and contents of `files`.
        facts: what the program that made it said of it.
        tokenizer: the hash of its tokenizer as it is served, if it has one.
    """

    folder: Path
    id: str
    sha256: str
    files: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, object]
    tokenizer: str | None


def read(job: Job) -> Source:
    """The job's source; the stage `fetch` has been run."""
    stored = storage.read_json(job.output("fetch") / RECORD)
    folder = local_folder(job) or job.output("fetch") / CHECKPOINT
    return Source(folder, sha256=storage.digest(stored["files"]), **stored)


def checkpoint(job: Job) -> Checkpoint:
    """The job's source, for its task; the stage `fetch` has been run."""
    return Checkpoint(read(job).folder, job.task)


def longest_text(job: Job) -> int | None:
    """Tokens of the longest text that the job's checkpoint has positions for; None without a bound,
    and for a module of one's own."""
    if job.recipe.family != "transformers":
        return None
    from python_mp.sharding.families import transformers

    return transformers.longest_text(transformers.read(read(job).folder / "config.json"))


def inputs(job: Job) -> dict[str, object]:
    said = job.recipe
    decides: dict[str, object] = {"source": said.source, "family": said.family, "task": job.task}
    if said.family == "vectors":
        decides["tensors"] = triton_config.outputs(job.folder)
    if said.family == "transformers":
        tensors = (*job.config.inputs, *job.config.outputs)
        decides["tensors"] = {spec.name: list(spec.dims) for spec in tensors}
    if folder := local_folder(job):
        return decides | {"files": _hashes(job, folder)}
    kind, name = job.recipe.source.split(":", 1)
    if kind == "make":
        return decides | {"code": code.of_file(maker(job)), "module": job.module_sha256}
    hub.require_commit(name)
    return decides


def run(job: Job, out: Path, progress: Progress) -> None:
    """Writes source.json, and the checkpoint unless it lies on this machine already.

    Raises:
        BuildError: it is not there, damaged, incomplete, or of an unknown architecture.
    """
    source, facts = job.recipe.source, {}
    folder = local_folder(job)
    if folder is None:
        folder = out / CHECKPOINT
        kind, name = source.split(":", 1)
        if kind == "make":
            folder.mkdir()
            facts = code.load(maker(job)).make(folder, progress)
        else:
            source = hub.download(name, folder)
    verify(job, folder)
    record = {
        "id": source,
        "files": _hashes(job, folder),
        "facts": dict(facts),
        "tokenizer": _tokenizer(job, folder),
    }
    storage.write_json(out / RECORD, record)


def verify(job: Job, folder: Path) -> None:
    """Raises BuildError unless `folder` holds what the job's family needs."""
    if job.recipe.family == "module":
        checkpoint_folder.tensors(folder)
        return
    found = Checkpoint(folder, job.task)
    if job.recipe.family == "vectors":
        tasks.check_vectors(job, found)
    if job.recipe.is_step:
        return
    found.check_weights()
    tasks.check_tensors(job, found, found.architecture)


def _tokenizer(job: Job, folder: Path) -> str | None:
    """The hash of what the family `tokenizer` would serve of it."""
    if job.recipe.family == "module" or not tokenizer_files.are_there(folder):
        return None
    return sha256(written(Checkpoint(folder, job.task)).encode()).hexdigest()


def local_folder(job: Job) -> Path | None:
    """The folder of a source that lies on this machine; None for one to be got or made.

    Raises:
        BuildError: it is not there.
    """
    kind, _, name = job.recipe.source.partition(":")
    if kind == "package":
        return gguf_folder.of(checkpoint_folder.package_folder(name))
    if kind in ("hub", "make"):
        return None
    folder = PROJECT / Path(job.recipe.source).expanduser()
    if not folder.exists():
        raise BuildError(f"{job.model}: there is no folder {folder}; a source is {KINDS}.")
    return gguf_folder.of(folder)


def _hashes(job: Job, folder: Path) -> dict[str, dict[str, object]]:
    paths = {name: folder / name for name in _needed(job, folder)}
    for path in paths.values():
        if not path.is_file():
            raise BuildError(f"The checkpoint {folder} has no {path.name}.")
    return {name: storage.described(path) for name, path in paths.items()}


def _needed(job: Job, folder: Path) -> list[str]:
    """All that is read of it: of a module's folder whatever its samples may read; else the weights
    and every text, since transformers and sentence-transformers look into many."""
    if job.recipe.family == "module":
        checkpoint_folder.weight_files(folder)  # there must be some
        return [name for name in storage.files(folder) if not _is_hidden(name)]
    texts = [
        str(path.relative_to(folder))
        for pattern in hub.TEXTS
        for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))
        if path.is_file()
    ]
    needed = {"config.json", *(name for name in texts if not _is_hidden(name))}
    if job.recipe.family == "tokenizer":
        tokenizer_files.require(folder)
    if job.recipe.is_step:
        return sorted(needed)
    behind = {f"{path.parent.name}/{path.name}" for path in folder.glob(f"*/{WEIGHTS}")}
    return sorted({*needed, *behind, *checkpoint_folder.weight_files(folder)})


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def maker(job: Job) -> Path:
    """The file that makes the job's source."""
    path = job.home / job.recipe.source.removeprefix("make:")
    if not path.is_file():
        raise BuildError(
            f"{job.home} has no file {path.name}, which {job.recipe.source} names: what makes a"
            " source lies beside recipe.toml, as weights.py does for make:weights.py"
        )
    return path


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("fetch"))
