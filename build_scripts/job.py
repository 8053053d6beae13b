"""A job: one model to be built by one recipe. Every stage is given it, and nothing else."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from build_scripts import code, recipe, storage, triton_config
from build_scripts.errors import BuildError
from build_scripts.recipe import Recipe
from python_mp import layout
from python_mp.config import ModelConfig, parse

PROJECT = Path(__file__).resolve().parent.parent
REPOSITORY = PROJECT / "model_repository"
WORKSPACE = PROJECT / "build" / "engines"
SAMPLES = "samples.py"
CODE = {"module": "module.py", "tokenizer": "model.py"}


@dataclass(frozen=True)
class Job:
    """One model, engine, dtype and layout.

    Attributes:
        folder: the model's folder in the repository, with config.pbtxt and recipe.toml.
        recipe: as it is built, overrides applied.
        workspace: where stages leave their outputs.
        saved: what becomes of recipe.toml when the job is published; None where it stays.
        outputs: the folder of every stage's output, by the stage's name; filled by `stages.plan`.
    """

    model: str
    folder: Path
    recipe: Recipe
    workspace: Path = WORKSPACE
    saved: str | None = None
    outputs: dict[str, Path] = field(default_factory=dict, compare=False)

    @cached_property
    def config(self) -> ModelConfig:
        """config.pbtxt as it will be published: with the recipe's engine, dtype and layout."""
        return triton_config.model_config(self.folder, self.recipe)

    @cached_property
    def tensors(self) -> dict[str, Any] | None:
        """What stages read of config.pbtxt, as JSON values; None for a tokenizer."""
        if self.recipe.family == "tokenizer":
            return None
        return {
            "inputs": [asdict(spec) for spec in self.config.inputs],
            "outputs": [asdict(spec) for spec in self.config.outputs],
            "lengths": self.config.parameters.lengths,
            "parameters": dict(self.config.module_parameters),
        }

    @property
    def name(self) -> str:
        """What it is called in progress and tables."""
        if self.recipe.family == "tokenizer":
            return self.model
        return f"{self.model} {self.recipe.engine} {self.recipe.dtype} {self.recipe.layout}"

    @property
    def world_size(self) -> int:
        return self.recipe.layout.world_size

    @property
    def layout(self) -> dict[str, int]:
        """The layout of one replica, which is all that an artifact depends on."""
        sizes = self.recipe.layout
        return {
            "tensor_parallel_size": sizes.tensor_parallel_size,
            "pipeline_parallel_size": sizes.pipeline_parallel_size,
        }

    @property
    def on_gpu(self) -> bool:
        """Whether config.pbtxt places the ranks on GPUs."""
        return layout.replicas(self.config)[0].leader.device != layout.CPU

    @property
    def weights_dtype(self) -> str:
        """Of the sharded weights. ONNX graphs start from float32, and so does quantisation."""
        eager = self.recipe.engine in ("torch", "aot_inductor")
        return self.recipe.dtype if eager and self.recipe.dtype != "int8" else "float32"

    @property
    def code(self) -> Path | None:
        """The user's module, or the Python backend's model: what is published with the artifact.

        Raises:
            BuildError: the family needs it, and it is not there.
        """
        if self.recipe.family not in CODE:
            return None
        path = self.folder / CODE[self.recipe.family]
        if not path.is_file():
            raise BuildError(f"{path} is missing: family '{self.recipe.family}' is built with it")
        return path

    @property
    def beside(self) -> dict[str, Path]:
        """What else lies in the model's folder: samples.py, and all that it may read."""
        known = {recipe.NAME, triton_config.NAME, self.code.name if self.code else ""}
        return {
            name: path
            for name, path in storage.files(self.folder).items()
            if name not in known and not name.startswith(".") and not name.split("/")[0].isdecimal()
        }

    @property
    def samples(self) -> dict[str, object]:
        """What decides the samples, as JSON values: for the keys of stages that read them."""
        beside, limits = self.beside, self.config.parameters
        return {
            "files": storage.hashes(beside),
            "code": code.of_file(beside[SAMPLES]) if SAMPLES in beside else {},
            "judged": self.recipe.accuracy.samples,
            "calibrated": self.recipe.calibration.samples,
            "limits": [limits.max_batch_tokens, limits.max_batch_bytes],
        }

    @property
    def module_sha256(self) -> str | None:
        """Of the code and all that it imports of ours or of somebody's own."""
        return storage.digest(code.of_file(self.code)) if self.code else None

    def served_from(self, artifact: Path, folder: Path) -> ModelConfig:
        """The model as if `artifact` were version 1 of it in the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "1").symlink_to(artifact)
        return parse(self.config.source[0], str(folder), "1")

    def output(self, stage: str) -> Path:
        """The folder that holds what `stage` wrote."""
        return self.outputs[stage]


def load(
    model: str,
    repository: Path = REPOSITORY,
    overrides: Mapping[str, Any] | None = None,
    workspace: Path = WORKSPACE,
) -> Job:
    """Raises BuildError where the model, its recipe or its config.pbtxt make no sense."""
    folder = repository / model
    if not folder.is_dir():
        raise BuildError(f"There is no model '{model}' in {repository}; {_models(repository)}")
    return Job(model, folder, recipe.load(folder, overrides), workspace)


def artifact_stage(names: Iterable[str]) -> str:
    """Of a job's stages the one whose output is published: the last that makes something."""
    return [name for name in names if name != "verify"][-1]


def models(repository: Path = REPOSITORY) -> list[str]:
    """Names of the models that have a recipe."""
    return sorted(path.parent.name for path in repository.glob(f"*/{recipe.NAME}"))


def _models(repository: Path) -> str:
    return f"those with a recipe: {', '.join(models(repository)) or 'none'}"
