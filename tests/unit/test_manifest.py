"""Manifests: written, read, and what they refuse, in a sentence that ends with what to run."""

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from python_mp.model import admission, manifest
from python_mp.model.admission import check_hardware, refusal
from python_mp.model.config import ModelConfig
from python_mp.model.errors import ConfigError, LoadError
from python_mp.model.manifest import Manifest, configured, rank_file
from tests.support.configs import FP32, model_config, tensor

AGAIN = r"; run `python -m build_scripts.build m`$"


def config(folder: Path, **parameters: Any) -> ModelConfig:
    given = {"engine": "torch", "tensor_parallel_size": 2} | parameters
    return model_config(folder, [tensor("X", FP32, 4)], [tensor("Y", FP32, 2)], **given)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version directory with two ranks."""
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    for rank in range(2):
        (folder / f"rank{rank}.safetensors").write_text(f"weights of {rank}")
    described(folder).write(folder)
    return folder


def described(folder: Path, **changes: Any) -> Manifest:
    files = sorted(path for path in folder.iterdir() if path.name != manifest.NAME)
    made = Manifest(
        artifact="a1",
        model="m",
        family="module",
        engine="torch",
        dtype="float32",
        layout={"tensor_parallel_size": 2, "pipeline_parallel_size": 1},
        inputs=[{"name": "X", "dtype": "float32", "dims": [4]}],
        outputs=[{"name": "Y", "dtype": "float32", "dims": [2]}],
        source={"id": "folder", "sha256": "00", "facts": {}},
        files={
            path.name: {"size": path.stat().st_size, "sha256": manifest.sha256(path)}
            for path in files
        },
        versions={"torch": "2.13.0"},
        hardware={"machine": platform.machine(), "cpu": None, "cpu_features": [], "gpu": None},
        options={},
        recipe={"family": "module"},
        accuracy={"cosine_min": 0.5},
        latency={"p50_ms": 1.5},
        built="2026-11-22T00:00:00+00:00",
    )
    return replace(made, **changes)


def check(folder: Path, **parameters: Any) -> None:
    read = Manifest.read(folder)
    assert read is not None
    refusal(folder, read, config(folder.parent, **parameters))


def refuse(folder: Path, said: str, **parameters: Any) -> None:
    with pytest.raises(LoadError, match=said + ".*" + AGAIN):
        check(folder, **parameters)


def test_what_was_written_is_read(version: Path) -> None:
    assert Manifest.read(version) == described(version)
    check(version)


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "is of format None, but 3 is read now"),
        ('{"format": 2, "recipe": {}}', "is of format 2, but 3 is read now"),
        ('{"format": 3, "model": "m"}', "lacks keys or has unknown ones"),
    ],
)
def test_a_broken_manifest_is_refused(version: Path, text: str, said: str) -> None:
    (version / manifest.NAME).write_text(text)
    with pytest.raises(LoadError, match=said + ".*" + AGAIN):
        Manifest.read(version)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"tensor_parallel_size": 4}, "built with tensor_parallel_size 2, but config.pbtxt says 4"),
        ({"pipeline_parallel_size": 3}, "built with pipeline_parallel_size 1, .* says 3"),
    ],
)
def test_another_config_is_refused(version: Path, parameters: dict[str, Any], said: str) -> None:
    refuse(version, said, **parameters)


def test_the_manifest_says_engine_and_dtype(version: Path) -> None:
    described(version, engine="onnxruntime", dtype="int8").write(version)
    text, folder = config(version.parent).source[0], str(version.parent)
    with pytest.raises(ConfigError, match="built with engine onnxruntime, but config.pbtxt says"):
        configured(text, folder, "1")
    raw = json.loads(text)
    del raw["parameters"]["engine"]
    made = configured(json.dumps(raw), folder, "1").parameters
    assert (made.engine, made.dtype) == ("onnxruntime", "int8")
    (version / manifest.NAME).unlink()
    with pytest.raises(ConfigError, match="a version without manifest.json needs"):
        configured(json.dumps(raw), folder, "1")
    assert configured(text, folder, "1").parameters.engine == "torch"


def test_other_inputs_or_outputs_are_refused(version: Path) -> None:
    wrong = [{"name": "X", "dtype": "float32", "dims": [5]}]
    for changes in ({"inputs": wrong}, {"outputs": wrong}):
        described(version, **changes).write(version)
        refuse(version, "built for other inputs or outputs")


def test_a_rank_that_was_never_built_is_refused(version: Path) -> None:
    (version / "rank1.safetensors").unlink()
    described(version).write(version)
    refuse(version, r"rank 1 is missing: there is no rank1\.safetensors")


def test_a_rank_that_was_removed_is_refused(version: Path) -> None:
    (version / "rank1.safetensors").unlink()
    refuse(version, r"rank1\.safetensors is missing")


def test_a_file_of_another_size_is_refused(version: Path) -> None:
    (version / "rank0.safetensors").write_text("weights")
    refuse(version, r"rank0\.safetensors has 7 bytes instead of 12")


def test_a_flipped_bit_is_refused(version: Path) -> None:
    path = version / "rank0.safetensors"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    refuse(version, r"rank0\.safetensors was changed since it was built")


def test_another_machine_is_refused(version: Path) -> None:
    hardware = {"machine": "aarch65", "cpu": None, "cpu_features": [], "gpu": None}
    described(version, hardware=hardware).write(version)
    refuse(version, "built for aarch65, but this machine is")


def test_a_lacking_instruction_set_is_refused(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = sorted(admission.cpu_features())[:2]
    assert has
    hardware = {"machine": platform.machine(), "cpu": None, "cpu_features": has, "gpu": None}
    described(version, hardware=hardware).write(version)
    check(version)
    monkeypatch.setattr(admission, "cpu_features", lambda: frozenset(has[:1]))
    refuse(version, f"built for processors with {has[1]}, which this one has not")


def test_names_of_ranks() -> None:
    assert rank_file("torch", 1, 2) == "rank1.safetensors"
    assert rank_file("aot_inductor", 0, 1) == "rank0.pt2"
    assert rank_file("onnxruntime", 3, 4) == "rank3.onnx"
    assert rank_file("tensorrt", 0, 1) == "model.plan"
    assert rank_file("tensorrt", 1, 2) == "model.plan.rank1"


H200 = {"name": "NVIDIA H200", "compute_capability": "9.0"}
H100 = {"name": "NVIDIA H100", "compute_capability": "9.0"}
A100 = {"name": "NVIDIA A100", "compute_capability": "8.0"}
T4 = {"name": "Tesla T4", "compute_capability": "7.5"}
B200 = {"name": "NVIDIA B200", "compute_capability": "10.0"}


def plan(version: Path, gpu: dict[str, str] | None, **options: Any) -> Callable[..., None]:
    """`check_hardware` of a TensorRT engine built for this GPU with these options."""
    made = described(
        version,
        engine="tensorrt",
        versions={"torch": "2.13.0", "tensorrt": "11.4.0.106"},
        hardware={"machine": platform.machine(), "cpu": None, "cpu_features": [], "gpu": gpu},
        options=options,
    )
    return lambda gpu, tensorrt="11.4.0.106": check_hardware(
        made, torch_version="2.14.0", gpu=gpu, tensorrt=tensorrt
    )


def test_a_plan_fits_its_own_gpu_and_tensorrt(version: Path) -> None:
    check = plan(version, H200)
    check(H200)
    with pytest.raises(LoadError, match="built for the GPU NVIDIA H200, but there is NVIDIA H1"):
        check(H100)
    with pytest.raises(LoadError, match="built for the GPU NVIDIA H200, but there is none"):
        check(None)
    with pytest.raises(LoadError, match=r"built by TensorRT 11\.4\.0\.106, but 11\.5\.0\.1 is"):
        check(H200, "11.5.0.1")
    with pytest.raises(LoadError, match="which is not installed here" + AGAIN):
        check(H200, None)


def test_hardware_compatibility_lets_other_gpus_in(version: Path) -> None:
    plan(version, H200, hardware_compatibility="same_compute_capability")(H100)
    with pytest.raises(LoadError):
        plan(version, H200, hardware_compatibility="same_compute_capability")(A100)
    for gpu in (A100, H200, B200):
        plan(version, A100, hardware_compatibility="ampere_plus")(gpu)
    with pytest.raises(LoadError):
        plan(version, A100, hardware_compatibility="ampere_plus")(T4)


def test_version_compatibility_lets_newer_tensorrt_in(version: Path) -> None:
    plan(version, H200, version_compatible=True)(H200, "12.0.0.1")
    with pytest.raises(LoadError, match="built by TensorRT"):
        plan(version, H200, version_compatible=True)(H200, "10.16.0.1")


def test_compiled_code_needs_its_own_torch(version: Path) -> None:
    made = described(version, engine="aot_inductor")
    check_hardware(made, torch_version="2.13.0")
    with pytest.raises(LoadError, match=r"compiled by torch 2\.13\.0, but torch 2\.14\.0 is run"):
        check_hardware(made, torch_version="2.14.0")
    check_hardware(described(version), torch_version="2.14.0")


def test_it_is_json_with_every_field(version: Path) -> None:
    stored = json.loads((version / manifest.NAME).read_text())
    assert stored["format"] == 3
    assert stored["files"]["rank0.safetensors"]["size"] == 12
