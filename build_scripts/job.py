"""A job: one model to be built by one recipe. Every stage is given it, and nothing else."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from build_scripts import code, recipe_file, storage, triton_config
from build_scripts.errors import BuildError
from build_scripts.places import PROJECT as PROJECT
from build_scripts.places import REPOSITORY as REPOSITORY
from build_scripts.places import WORKSPACE as WORKSPACE
from build_scripts.recipe import Recipe, Variant
from python_mp.model.config import ModelConfig
from python_mp.model.config_json import parse
from python_mp.model.parameters import TASKS
from python_mp.sharding.families.task import Kind

SAMPLES = "samples.py"
MODULE = "module.py"


@dataclass(frozen=True)
class Layout:
    """Of one replica, which is all that an artifact depends on."""

    tensor_parallel_size: int
    pipeline_parallel_size: int

    @property
    def world_size(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def __str__(self) -> str:
        return f"tp{self.tensor_parallel_size} pp{self.pipeline_parallel_size}"


@dataclass(frozen=True)
class Job:
    """One model, engine, dtype and layout.

    Attributes:
        folder: the model's folder in the repository, with config.pbtxt.
        home: the folder of the recipe, and of the file that makes its source.
        recipe: as it is built, overrides applied.
        sizes: of the layout, those that differ from config.pbtxt; none in a job that is published.
        workspace: where stages leave their outputs.
        outputs: the folder of every stage's output, by the stage's name; filled by `stages.plan`.
    """

    model: str
    folder: Path
    home: Path
    recipe: Recipe
    sizes: Mapping[str, int] = field(default_factory=dict)
    workspace: Path = WORKSPACE
    outputs: dict[str, Path] = field(default_factory=dict, compare=False)

    @cached_property
    def config(self) -> ModelConfig:
        """config.pbtxt with the recipe's engine and dtype."""
        recipe = self.recipe
        return triton_config.model_config(self.folder, recipe.engine, recipe.dtype, self.sizes)

    @cached_property
    def tensors(self) -> dict[str, Any] | None:
        """What stages read of config.pbtxt, as JSON values; None for a step."""
        if self.recipe.is_step:
            return None
        return {
            "inputs": [asdict(spec) for spec in self.config.inputs],
            "outputs": [asdict(spec) for spec in self.config.outputs],
            "lengths": self.config.parameters.lengths,
            "parameters": dict(self.config.module_parameters),
            "task": self.task,
        }

    @cached_property
    def task(self) -> Kind | None:
        """What the ensemble does, or a model that stands alone: the parameter `task` of the
        config.pbtxt that lies beside the recipe.

        Raises:
            BuildError: it is not known.
        """
        said = triton_config.parameter(self.home, "task")
        if said not in (None, *TASKS):
            file, known = self.home / triton_config.NAME, ", ".join(TASKS)
            raise BuildError(f"{file} has the task {said!r}; there are {known}")
        return cast("Kind | None", said)

    @property
    def name(self) -> str:
        """What it is called in progress and tables."""
        if self.recipe.is_step:
            return self.model
        return f"{self.model} {self.recipe.engine} {self.recipe.dtype} {self.layout}"

    @property
    def world_size(self) -> int:
        return self.layout.world_size

    @property
    def layout(self) -> Layout:
        sizes = self.config.parameters
        return Layout(sizes.tensor_parallel_size, sizes.pipeline_parallel_size)

    @property
    def on_gpu(self) -> bool:
        """Whether config.pbtxt places the ranks on GPUs."""
        return triton_config.on_gpus(self.folder)

    @property
    def needs_gpu(self) -> bool:
        """Whether it can neither be built nor verified without one."""
        if self.recipe.is_step:
            return False
        return self.recipe.engine == "tensorrt" or self.on_gpu

    @property
    def contradiction(self) -> str:
        """Where config.pbtxt says another engine or dtype than the recipe; empty where it does not,
        which is all that is asked of it."""
        if self.recipe.is_step:
            return ""
        recipe = self.recipe
        return triton_config.contradiction(self.folder, recipe.engine, recipe.dtype)

    @property
    def weights_dtype(self) -> str:
        """Of the sharded weights. ONNX graphs start from float32, and so does quantisation."""
        return self.recipe.dtype if self.recipe.engine in ("torch", "aot_inductor") else "float32"

    @property
    def code(self) -> Path | None:
        """The user's module, which is published with the artifact.

        Raises:
            BuildError: it is not there.
        """
        if self.recipe.family != "module":
            return None
        path = self.folder / MODULE
        if not path.is_file():
            raise BuildError(f"{path} is missing: family 'module' is built with it")
        return path

    @property
    def code_files(self) -> dict[str, Path]:
        """The code and the files beside it that it imports, by their names in the folder."""
        return code.files(self.code) if self.code else {}

    @property
    def beside(self) -> dict[str, Path]:
        """What else lies in the model's folder: samples.py, and all that it may read."""
        known = {recipe_file.NAME, triton_config.NAME, self.code.name if self.code else ""}
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
            "sizes": self.recipe.shapes.samples,
            "limits": [
                limits.max_batch_tokens,
                limits.max_batch_bytes,
                limits.min_sequence_length,
            ],
        }

    @property
    def module_sha256(self) -> str | None:
        """Of the code and all that it imports of ours or of somebody's own."""
        return storage.digest(code.of_file(self.code)) if self.code else None

    def served_from(self, artifact: Path, folder: Path) -> ModelConfig:
        """The model as if `artifact` were version 1 of it in the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "1").symlink_to(artifact)
        given, _, _, engine, dtype = self.config.source
        return parse(given, str(folder), "1", engine, dtype)

    def variant(self, variant: Variant) -> "Job":
        """What the recipe lists besides. Raises BuildError where it does not fit config.pbtxt."""
        said = self.recipe.variant(variant)
        return replace(self, recipe=said, sizes=variant.sizes, outputs={}).checked()

    def checked(self) -> "Job":
        """Itself. Raises BuildError where config.pbtxt makes no sense for it."""
        if not self.recipe.is_step:
            _ = self.config
        return self

    def output(self, stage: str) -> Path:
        """The folder that holds what `stage` wrote."""
        return self.outputs[stage]


def load(
    model: str,
    repository: Path = REPOSITORY,
    overrides: Mapping[str, Any] | None = None,
    workspace: Path = WORKSPACE,
    sizes: Mapping[str, int] | None = None,
) -> Job:
    """Raises BuildError where the model, its recipe or its config.pbtxt make no sense."""
    path = recipe_file.of_model(model, repository)
    folder = repository / model
    if not folder.is_dir():
        raise BuildError(f"{path} makes {model}, but there is no folder {folder}")
    said = recipe_file.load(path, model, overrides)
    made = Job(model, folder, path.parent, said, sizes or {}, workspace)
    return made.checked()


def artifact_stage(names: Iterable[str]) -> str:
    """Of a job's stages the one whose output is published: the last that makes something."""
    return [name for name in names if name != "verify"][-1]
