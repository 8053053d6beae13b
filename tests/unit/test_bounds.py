"""What is found out about a config before any rank is started."""

from pathlib import Path
from typing import Any

import pytest

from python_mp.front import bounds
from python_mp.machine import cgroup
from python_mp.model.config import ModelConfig
from python_mp.model.errors import ConfigError
from tests.support.configs import FP32, INT32, model_config, tensor

X = tensor("X", FP32, 4)
GIB = 1 << 30


def config(*outputs: dict[str, Any], inputs: Any = (X,), **more: Any) -> ModelConfig:
    return model_config(Path("m"), inputs, outputs or [X], passive=0, engine="torch", **more)


def test_usual_sizes_are_admitted() -> None:
    bounds.admit(config(), GIB)
    bounds.admit(config(inputs=[tensor(f"feature_{n}", FP32, 1) for n in range(300)]), GIB)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (config(tensor("BIG", FP32, -1, 1 << 25)), "row of the outputs has 134217728 bytes"),
        (config(inputs=[tensor("BIG", INT32, 300)], max_batch_bytes=1024), "inputs has 1200 bytes"),
        (config(inputs=[tensor(f"F{n:060}", FP32, 1) for n in range(900)]), "900 inputs take"),
        (config(max_batch_bytes=1 << 36), "max_batch_bytes 68719476736.*has 1073741824: lower"),
        (config(pipeline_parallel_size=9), "10 batches in flight"),
        (
            config(pipeline_parallel_size=2, hosts=2, max_batch_bytes=1 << 31),
            "between hosts a batch may take at most 1073741824",
        ),
        (config(max_queue_bytes=1 << 40), "max_queue_bytes is 1099511627776; this machine"),
        (config(**{"module.table": "x" * 200_000}), "200[0-9]* bytes of JSON, of which .* 180000:"),
    ],
)
def test_what_could_never_be_carried_is_refused(made: ModelConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bounds.admit(made, GIB)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2.0),
        ("0::/a/b", {"cpu.max": "max 100000", "c/cpu.max": "50000 100000"}, None),
        (
            "4:cpu,cpuacct:/a\n0::/",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_quota_us": "150000"},
            1.5,
        ),
        ("nothing that anybody knows", {"cpu.max": "100000 100000"}, 1.0),
    ],
)
def test_every_level_of_the_control_groups_counts(
    membership: str, files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.with_name("cpu.cfs_period_us").write_text("100000")
    assert cgroup.cpus(tmp_path / "cgroups", tmp_path / "membership") == expected


def test_memory_has_limits_on_every_level_too(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/a/b\n7:memory:/c\n")
    for name, text in {"a/memory.max": "900", "memory/c/memory.limit_in_bytes": "800"}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert cgroup.memory(tmp_path, tmp_path / "membership") == 800
    assert cgroup.memory(tmp_path, tmp_path / "none") is None
