"""Whether a version directory can be served: by its config.pbtxt, its files, this machine.

Every sentence ends with the command that builds the version anew. Standard library only.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .config import ModelConfig
from .errors import LoadError
from .manifest import NAME, Manifest, rank_file, run_again, sha256, tensors
from .parameters import UNBUILT
from .paths import present, regular


def admit(config: ModelConfig) -> Manifest | None:
    """Checks the version that Triton is about to serve. One made by hand, without a manifest, may
    be: by engine torch, from a checkpoint's own files.

    Returns:
        The manifest, if there is one.

    Raises:
        LoadError: as `refusal`.
    """
    engine = config.parameters.engine
    manifest = Manifest.read(config.folder) if engine != "echo" else None
    if manifest:
        refusal(config.folder, manifest, config)
    elif engine not in UNBUILT:
        again = run_again(config.name)
        raise LoadError(f"{config.folder} has no {NAME}, which engine {engine} needs; {again}")
    return manifest


def refusal(folder: Path, manifest: Manifest, config: ModelConfig) -> None:
    """Checks the version directory against config.pbtxt, its own files and this machine.

    Raises:
        LoadError: something does not fit; the sentence ends with the command that rebuilds.
    """
    try:
        for misfit in (_config_misfit(manifest, config), machine_misfit(manifest)):
            if misfit:
                raise LoadError(f"{folder}: {misfit}; {run_again(manifest.model)}")
        check_files(folder, manifest)
    except (TypeError, KeyError, AttributeError) as error:
        again = run_again(config.name)
        raise LoadError(f"{folder / NAME} holds nonsense ({error!r}); {again}") from None


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises LoadError unless all files are there with the content that the manifest says."""
    for name, record in manifest.files.items():
        if name != Path(name).name:
            raise LoadError(f"{folder / NAME} names '{name}', which is not a file beside it")
        if not present(folder, name):
            _refuse_file(folder / name, "is missing", manifest)
        path = regular(folder, name)
        if path.stat().st_size != record["size"]:
            _refuse_file(
                path, f"has {path.stat().st_size} bytes instead of {record['size']}", manifest
            )
    with ThreadPoolExecutor() as threads:
        contents = threads.map(sha256, [folder / name for name in manifest.files])
        for (name, record), content in zip(manifest.files.items(), contents, strict=True):
            if content != record["sha256"]:
                _refuse_file(folder / name, "was changed since it was built", manifest)


def check_hardware(
    manifest: Manifest,
    *,
    torch_version: str,
    gpu: Mapping[str, str] | None = None,
    tensorrt: str | None = None,
) -> None:
    """What only a rank can know: whether its libraries and its GPU are those of the build.

    Args:
        gpu: `name` and `compute_capability` ("9.0") of the rank's GPU.
        tensorrt: version of the TensorRT library.

    Raises:
        LoadError: the engine cannot run with them; the sentence ends with the command that
            rebuilds.
    """
    misfit = ""
    if manifest.engine == "aot_inductor":
        misfit = _torch_misfit(manifest, torch_version)
    if manifest.engine == "tensorrt":
        misfit = _tensorrt_misfit(manifest, tensorrt)
    if misfit := misfit or gpu_misfit(manifest, gpu):
        raise LoadError(f"{misfit}; {run_again(manifest.model)}")


def machine_misfit(manifest: Manifest) -> str:
    """Why this machine's processor cannot run the engine; empty where it can."""
    machine = manifest.hardware["machine"]
    if machine != platform.machine():
        return f"built for {machine}, but this machine is {platform.machine()}"
    if lacking := sorted(set(manifest.hardware["cpu_features"]) - cpu_features()):
        return f"built for processors with {', '.join(lacking)}, which this one has not"
    return ""


def cpu_features() -> frozenset[str]:
    """Flags of this machine's first processor, as /proc/cpuinfo names them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, flags = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()


def _config_misfit(manifest: Manifest, config: ModelConfig) -> str:
    for key in ("tensor_parallel_size", "pipeline_parallel_size"):
        said: int = getattr(config.parameters, key)
        if manifest.layout[key] != said:
            return f"built with {key} {manifest.layout[key]}, but config.pbtxt says {said}"
    if manifest.inputs != tensors(config.inputs) or manifest.outputs != tensors(config.outputs):
        return "built for other inputs or outputs than those of config.pbtxt"
    for rank in range(config.world_size):
        name = rank_file(manifest.engine, rank, config.world_size)
        if name not in manifest.files:
            return f"rank {rank} is missing: there is no {name}"
    return ""


def _torch_misfit(manifest: Manifest, running: str) -> str:
    built = manifest.versions["torch"]
    return "" if built == running else f"compiled by torch {built}, but torch {running} is running"


def _tensorrt_misfit(manifest: Manifest, running: str | None) -> str:
    built = manifest.versions["tensorrt"]
    if running is None:
        return f"built by TensorRT {built}, which is not installed here"
    if manifest.options.get("version_compatible"):
        fits = int(running.split(".")[0]) >= int(built.split(".")[0])
    else:
        fits = running == built
    return "" if fits else f"built by TensorRT {built}, but {running} is running"


def gpu_misfit(manifest: Manifest, gpu: Mapping[str, str] | None) -> str:
    """Why a GPU (`name`, `compute_capability`; None for none) cannot run the engine, if so."""
    built = manifest.hardware["gpu"]
    if built is None:
        return ""
    if gpu is None:
        return f"built for the GPU {built['name']}, but there is none"
    compatibility = manifest.options.get("hardware_compatibility", "none")
    if compatibility == "ampere_plus":
        fits = float(gpu["compute_capability"]) >= 8
    elif compatibility == "same_compute_capability":
        fits = gpu["compute_capability"] == built["compute_capability"]
    else:
        fits = dict(gpu) == dict(built)
    return "" if fits else f"built for the GPU {built['name']}, but there is {gpu['name']}"


def _refuse_file(path: Path, fault: str, manifest: Manifest) -> None:
    raise LoadError(f"{path} {fault}; {run_again(manifest.model)}")
