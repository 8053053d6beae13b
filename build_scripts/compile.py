"""Stage `compile`: graphs become machine code, one file a rank.

aot_inductor   rankR.pt2, by the system's C++ compiler (on CUDA devices by Triton's)
tensorrt       model.plan, or model.plan.rankR where there are several
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from rich.progress import Progress

from build_scripts import storage
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.quiet import quiet
from build_scripts.shards import add_code
from python_mp.model import admission

NEEDS = ("fetch", "shards", "export", "quantise")
TOOLS = ("tensorrt", "torch")


def applies(job: Job) -> bool:
    return job.recipe.engine in ("aot_inductor", "tensorrt")


def inputs(job: Job) -> dict[str, object]:
    if job.recipe.engine == "aot_inductor":
        return {"engine": "aot_inductor"}
    return {
        "engine": "tensorrt",
        "dtype": job.recipe.dtype,
        "options": job.recipe.tensorrt.as_json(),
        "shapes": job.recipe.shapes.as_json(),
    }


def machine(job: Job) -> dict[str, object]:
    """What the code is made for."""
    if job.recipe.engine == "tensorrt":
        return {"gpu": gpu()}
    return {"cpu_features": cpu_features(), "gpu": gpu() if job.on_gpu else None}


def run(job: Job, out: Path, progress: Progress) -> None:
    """Raises BuildError where a compiler is missing or refuses a graph."""
    if job.recipe.engine == "tensorrt":
        from build_scripts.tensorrt import builder

        builder.run(job, out, progress)
    else:
        from build_scripts import ranks

        if not shutil.which("g++"):
            raise BuildError("aot_inductor needs a C++ compiler: install g++, then build again")
        ranks.each(job, compile_rank, out, progress, "compile")
        storage.write_json(out / "facts.json", {"hardware": machine(job)})
    add_code(job, out)


def compile_rank(job: Job, rank: int, out: Path) -> None:
    """AOTInductor: one rank's exported program to a package that holds code and weights."""
    import torch

    from python_mp.sharding import ops  # noqa: F401  the graph's operators

    names = {"inputs": "", "outputs": "", "sizes": ""}
    exported = job.output("export") / f"rank{rank}.exported.pt2"
    with quiet():
        torch._inductor.aoti_compile_and_package(
            torch.export.load(exported, extra_files=names),
            package_path=str(out / f"rank{rank}.pt2"),
            inductor_configs={"aot_inductor.metadata": names},
        )


def gpu() -> dict[str, str] | None:
    """`name` and `compute_capability` of the first GPU; None where there is none. It asks the
    driver's tool, so as not to import torch."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,compute_cap", "--format=csv,noheader", "--id=0"]
    name, _, capability = subprocess.run(
        query, capture_output=True, text=True, check=False
    ).stdout.rpartition(",")
    return {"name": name.strip(), "compute_capability": capability.strip()} if name else None


def cpu_features() -> list[str]:
    """Instruction sets of this processor, which the code compiled here may use."""
    families = ("avx", "amx", "fma", "f16c", "bmi")
    return sorted(flag for flag in admission.cpu_features() if flag.startswith(families))


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("compile"))
