"""A checkpoint in a folder: which files it has, and whether it is whole. Pickle is not read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from build_scripts import cross_encoder_folder, sentence_folder, storage
from build_scripts.cross_encoder_folder import CrossEncoder
from build_scripts.errors import BuildError
from build_scripts.sentence_folder import Settings
from python_mp.model.errors import LoadError
from python_mp.sharding import checkpoint
from python_mp.sharding.checkpoint import INDEX, WEIGHTS
from python_mp.sharding.tied import tied

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from python_mp.sharding.families.task import Kind

ADAPTER = "adapter_config.json"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """An encoder's checkpoint, for a task; BuildError where config.json, or what a
    sentence-transformers folder says beside it, is missing or not supported."""

    path: Path
    task: Kind | None = None

    def __post_init__(self) -> None:
        if not self.file("config.json").is_file():
            raise BuildError(f"The checkpoint {self.path} has no config.json.")
        if found := checkpoint.unsupported(self.config):
            raise BuildError(f"The checkpoint {self.path} has {found}.")
        if self.file(ADAPTER).is_file():
            raise BuildError(
                f"The checkpoint {self.path} has an adapter ({ADAPTER}), which is not applied here:"
                " merge it into the weights, and remove the file."
            )
        assert self.settings

    def file(self, name: str) -> Path:
        return self.path / name

    @cached_property
    def config(self) -> dict[str, Any]:
        return storage.read_json(self.file("config.json"))

    @cached_property
    def architecture(self) -> PretrainedConfig:
        """config.json as transformers reads it, with the defaults of its family.

        Raises:
            BuildError: it is of no model that transformers has.
        """
        from python_mp.sharding.families import transformers

        try:
            return transformers.read(self.file("config.json"))
        except LoadError as error:
            raise BuildError(str(error)) from None

    @cached_property
    def settings(self) -> Settings:
        if self.task == "embed":
            return sentence_folder.read(self.path)
        if self.task is None:
            return sentence_folder.texts(self.path)
        if self.task == "rerank":
            cross_encoder_folder.require_one_score(self.path, self.config)
        return self.cross_encoder.settings if self.cross_encoder else Settings()

    @cached_property
    def cross_encoder(self) -> CrossEncoder | None:
        """What the folder says for sentence-transformers' CrossEncoder; None where it is read by
        transformers alone."""
        is_one = self.task == "classify" and cross_encoder_folder.says_so(self.path, self.config)
        if self.task == "rerank" or is_one:
            return cross_encoder_folder.read(self.path, self.config)
        return None

    @property
    def takes_pairs(self) -> bool:
        """Of texts, always or when a client wants it."""
        return self.task in ("rerank", "classify")

    def check_weights(self) -> None:
        """Raises BuildError unless they are those of the task's module. They are loaded only where
        their names do not say it."""
        if not self.bears_its_names:
            self.model()  # transformers may know other names for them, or says what is missing.

    @property
    def bears_its_names(self) -> bool:
        """Whether its tensors are those of the task's module: of these names and shapes, or, where
        it is of a model with a head, behind the base's prefix."""
        from python_mp.sharding.families import skeleton

        there = tensors(self.path)
        try:
            model = skeleton.make(self.architecture, self.task)
        except Exception:  # `model` says what is wrong.
            return False
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name in tied(model, there):
            del wanted[name]
        prefixed = {f"{model.base_model_prefix}.{name}": shape for name, shape in wanted.items()}
        return wanted.items() <= there.items() or prefixed.items() <= there.items()

    def model(self) -> PreTrainedModel:
        """As transformers loads it for the task, in float32, on the CPU.

        Raises:
            BuildError: it cannot, or a tensor is missing or of another shape.
        """
        import torch

        from build_scripts.quiet import quiet

        tensors(self.path)  # whose sentences name the damaged file
        with quiet():
            from transformers.utils import logging

            from python_mp.sharding.families import skeleton

            logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            logging.set_verbosity_error()  # type: ignore[no-untyped-call]
            try:
                kind, options = skeleton.kind(self.architecture, self.task)
                model, said = kind.from_pretrained(
                    self.path,
                    dtype=torch.float32,
                    use_safetensors=True,
                    **options,
                    local_files_only=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
            except LoadError as error:
                raise BuildError(str(error)) from None
            except Exception as error:  # many classes, all with a sentence
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise BuildError(
                    f"transformers cannot load the checkpoint {self.path}: {reason}"
                ) from error
        self._refuse(said)
        return model.eval()  # type: ignore[no-any-return]

    def _refuse(self, said: dict[str, Any]) -> None:
        for name in sorted(said["missing_keys"]):
            raise BuildError(f"The checkpoint {self.path} lacks the tensor {name}.")
        for name, given, wanted in sorted(said["mismatched_keys"]):
            raise BuildError(
                f"The checkpoint {self.path}: {name} has the shape {list(given)},"
                f" config.json asks for {list(wanted)}."
            )


def package_folder(package: str) -> Path:
    """Where an installed package holds its checkpoint: its folder, or the folder `model` in it.

    Raises:
        BuildError: it is not installed.
    """
    spec = find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise BuildError(
            f"The package {package.replace('_', '-')} is not installed; run `make install`,"
            " or name another checkpoint with --source."
        )
    home = Path(spec.origin).parent
    has_inner = not (home / "config.json").exists() and (home / "model").is_dir()
    return home / "model" if has_inner else home


def weight_files(folder: Path) -> list[str]:
    """Names of the checkpoint's safetensors files, with their index where there is one.

    Raises:
        BuildError: there are none, one that the index names is missing, or they are pickle.
    """
    try:
        names = checkpoint.weight_files(folder)
    except LoadError as error:
        raise BuildError(f"The checkpoint cannot be used: {error}.") from None
    return names if names == [WEIGHTS] or not (folder / INDEX).is_file() else [*names, INDEX]


def tensors(folder: Path) -> dict[str, Shape]:
    """Names and shapes of all tensors.

    Raises:
        BuildError: a file is damaged or missing, or lacks what the index says that it holds.
    """
    names = weight_files(folder)
    shapes: dict[str, Shape] = {}
    for name in names:
        if name != INDEX:
            shapes |= _tensors(folder / name)
    for tensor, file in (checkpoint.tensor_map(folder) if INDEX in names else {}).items():
        if tensor not in shapes:
            raise BuildError(f"{folder / file} lacks the tensor {tensor}.")
    return shapes


def _tensors(path: Path) -> dict[str, Shape]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BuildError(f"{path} cannot be read: {error}.") from None
