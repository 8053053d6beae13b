"""Manifests: written, read, and what they refuse, in a sentence that ends with what to run."""

import json
import platform
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from python_mp.model import admission
from python_mp.model.admission import check_hardware, refusal
from python_mp.model.config import ModelConfig
from python_mp.model.errors import ConfigError, LoadError
from python_mp.model.manifest import NAME, Manifest, configured, rank_file, sha256
from tests.support.configs import FP32, manifest, model_config, tensor

AGAIN = r"; run `python -m build_scripts.build m`$"


TP, PP = "tensor_parallel_size", "pipeline_parallel_size"
V = "11.4.0.106"
HARDWARE = {"machine": platform.machine(), "cpu": None, "cpu_features": [], "gpu": None}


def config(folder: Path) -> ModelConfig:
    given = {"engine": "torch", TP: 2}
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
    paths = sorted(folder.glob("rank*"))
    values: dict[str, Any] = {
        "model": "m",
        "engine": "torch",
        "layout": {TP: 2, PP: 1},
        "inputs": [{"name": "X", "dtype": "float32", "dims": [4]}],
        "outputs": [{"name": "Y", "dtype": "float32", "dims": [2]}],
        "files": {
            path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in paths
        },
        "versions": {"torch": "2.13.0", "tensorrt": V},
        "hardware": HARDWARE,
    }
    return manifest(**values | changes)


def check(folder: Path) -> None:
    read = Manifest.read(folder)
    assert read is not None
    refusal(folder, read, config(folder.parent))


def refuse(folder: Path, said: str) -> None:
    with pytest.raises(LoadError, match=said + ".*" + AGAIN):
        check(folder)


def test_what_was_written_is_read(version: Path) -> None:
    assert Manifest.read(version) == described(version)
    check(version)
    assert json.loads((version / NAME).read_text())["format"] == 3
    assert Manifest.read(version.parent) is None


def test_a_broken_manifest_is_refused(version: Path) -> None:
    for text, said in (
        ("{", "cannot be read"),
        ("[]", "is of format None, but 3 is read now"),
        ('{"format": 2, "recipe": {}}', "is of format 2, but 3 is read now"),
        ('{"format": 3, "model": "m"}', "lacks keys or has unknown ones"),
    ):
        (version / NAME).write_text(text)
        with pytest.raises(LoadError, match=said + ".*" + AGAIN):
            Manifest.read(version)


def test_the_manifest_says_engine_and_dtype(version: Path) -> None:
    described(version, engine="onnxruntime", dtype="int8").write(version)
    text, folder = config(version.parent).source[0], str(version.parent)
    with pytest.raises(ConfigError, match="built with engine onnxruntime, but config.pbtxt says"):
        configured(text, folder, "1")
    raw = json.loads(text)
    del raw["parameters"]["engine"]
    made = configured(json.dumps(raw), folder, "1").parameters
    assert (made.engine, made.dtype) == ("onnxruntime", "int8")
    (version / NAME).unlink()
    with pytest.raises(ConfigError, match="a version without manifest.json needs"):
        configured(json.dumps(raw), folder, "1")
    assert configured(text, folder, "1").parameters.engine == "torch"


OTHER = [{"name": "X", "dtype": "float32", "dims": [5]}]


def test_what_was_built_otherwise_is_refused(version: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"layout": {TP: 4}}, f"built with {TP} 4, but config.pbtxt says 2"),
        ({"layout": {TP: 2, PP: 3}}, f"built with {PP} 3, but config.pbtxt says 1"),
        ({"inputs": OTHER}, "built for other inputs or outputs"),
        ({"outputs": OTHER}, "built for other inputs or outputs"),
        ({"files": {}}, r"rank 0 is missing: there is no rank0\.safetensors"),
        ({"hardware": HARDWARE | {"machine": "aarch65"}}, "built for aarch65, but this machine"),
    ]
    for change, said in changes:
        described(version, **change).write(version)
        refuse(version, said)


def test_files_that_changed_are_refused(version: Path) -> None:
    path = version / "rank0.safetensors"
    path.write_text("weights")
    refuse(version, r"rank0\.safetensors has 7 bytes instead of 12")
    path.write_text("Weights of 0")
    refuse(version, r"rank0\.safetensors was changed since it was built")
    path.unlink()
    refuse(version, r"rank0\.safetensors is missing")


def test_a_lacking_instruction_set_is_refused(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = sorted(admission.cpu_features())[:2]
    assert has
    described(version, hardware=HARDWARE | {"cpu_features": has}).write(version)
    check(version)
    monkeypatch.setattr(admission, "cpu_features", lambda: frozenset(has[:1]))
    refuse(version, f"built for processors with {has[1]}, which this one has not")


def test_names_of_ranks() -> None:
    assert rank_file("torch", 1, 2) == "rank1.safetensors"
    assert rank_file("aot_inductor", 0, 1) == "rank0.pt2"
    assert rank_file("onnxruntime", 3, 4) == "rank3.onnx"
    assert rank_file("tensorrt", 0, 1) == "model.plan"
    assert rank_file("tensorrt", 1, 2) == "model.plan.rank1"


Gpu = dict[str, str]
H200 = {"name": "NVIDIA H200", "compute_capability": "9.0"}
H100 = {"name": "NVIDIA H100", "compute_capability": "9.0"}
A100 = {"name": "NVIDIA A100", "compute_capability": "8.0"}
T4 = {"name": "Tesla T4", "compute_capability": "7.5"}


SAME = {"hardware_compatibility": "same_compute_capability"}
AMPERE = {"hardware_compatibility": "ampere_plus"}
NEWER = {"version_compatible": True}


@pytest.mark.parametrize(
    ("built", "options", "gpu", "tensorrt", "said"),
    [
        (H200, {}, H200, V, ""),
        (H200, {}, H100, V, "built for the GPU NVIDIA H200, but there is NVIDIA H1"),
        (H200, {}, None, V, "built for the GPU NVIDIA H200, but there is none"),
        (H200, {}, H200, "11.5.0.1", r"built by TensorRT 11\.4\.0\.106, but 11\.5\.0\.1 is"),
        (H200, {}, H200, None, "which is not installed here" + AGAIN),
        (H200, SAME, H100, V, ""),
        (H200, SAME, A100, V, "built for the GPU NVIDIA H200, but there is NVIDIA A100"),
        (A100, AMPERE, H200, V, ""),
        (A100, AMPERE, T4, V, "built for the GPU NVIDIA A100, but there is Tesla T4"),
        (H200, NEWER, H200, "12.0.0.1", ""),
        (H200, NEWER, H200, "10.16.0.1", "built by TensorRT"),
    ],
)
def test_a_plan_fits_some_gpus_and_versions_of_tensorrt(
    version: Path, built: Gpu, options: dict[str, Any], gpu: Gpu, tensorrt: str, said: str
) -> None:
    hardware = HARDWARE | {"gpu": built}
    plan = described(version, engine="tensorrt", hardware=hardware, options=options)
    with pytest.raises(LoadError, match=said) if said else nullcontext():
        check_hardware(plan, torch_version="2.14.0", gpu=gpu, tensorrt=tensorrt)


def test_compiled_code_needs_its_own_torch(version: Path) -> None:
    made = described(version, engine="aot_inductor")
    check_hardware(made, torch_version="2.13.0")
    with pytest.raises(LoadError, match=r"compiled by torch 2\.13\.0, but torch 2\.14\.0 is run"):
        check_hardware(made, torch_version="2.14.0")
    check_hardware(described(version), torch_version="2.14.0")
