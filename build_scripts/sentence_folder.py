"""What a sentence-transformers folder says beside its model: honoured by the ensemble `embed`, or
refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from build_scripts import sentence_modules
from build_scripts.errors import BuildError
from build_scripts.sentence_keys import MODEL, TRANSFORMER, known, whole
from build_scripts.storage import read_optional
from python_mp.sharding.families.task import Layer

MODEL_FILE = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Settings:
    """How texts are read, and what is made of them.

    Attributes:
        max_seq_length: tokens that a text is cut at, if it is said.
        do_lower_case: before the tokenizer.
        prompts: what stands before a text, by the names that clients ask by.
        default_prompt: the name of the one before texts of clients that ask for none.
        pooling: modes of sharding.pooling, whose vectors stand one behind the other.
        layers: what is made of these.
        truncate_dim: leading values of a vector that are left of it, if it is said.
    """

    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    pooling: tuple[str, ...] = ("mean",)
    layers: tuple[Layer, ...] = ()
    truncate_dim: int | None = None

    @property
    def usual_prompt(self) -> str:
        """What stands before a text where the client asks for nothing."""
        return self.prompts[self.default_prompt] if self.default_prompt else ""


def read(folder: Path) -> Settings:
    """Raises BuildError, naming file and key, for what `embed` does not do."""
    pooling, layers = sentence_modules.read(folder)
    prompts, default = _prompts(folder)
    return replace(
        texts(folder),
        prompts=prompts,
        default_prompt=default,
        pooling=pooling,
        layers=layers,
        truncate_dim=whole(folder / MODEL_FILE, known(folder / MODEL_FILE, MODEL), "truncate_dim"),
    )


def texts(folder: Path) -> Settings:
    """How texts are read, and no more. Raises BuildError as above."""
    file = _transformer_file(folder)
    said = known(file, TRANSFORMER)
    return Settings(whole(file, said, "max_seq_length"), bool(said.get("do_lower_case")))


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """By name, and the name of the default. Every folder has `query` and `document`."""
    file = folder / MODEL_FILE
    said = known(file, MODEL)
    given = said.get("prompts") or {}
    if not isinstance(given, dict) or not all(isinstance(v, str | None) for v in given.values()):
        raise BuildError(f"{file}: prompts must be texts by their names")
    prompts = {name: given.get(name) or "" for name in ("query", "document", *given)}
    default = said.get("default_prompt_name")
    if default is not None and default not in [*prompts]:
        raise BuildError(
            f"{file}: default_prompt_name is {default!r}; there are the prompts"
            f" {', '.join(prompts)}"
        )
    without = sentence_modules.leaves_prompts_out(folder)
    if without and any(prompts.values()):
        raise BuildError(
            f"{without}: include_prompt is false, and there are prompts; embed pools over all"
            f" tokens. Remove the prompts from {file.name} if clients need none."
        )
    return prompts, default


def _transformer_file(folder: Path) -> Path:
    """sentence-transformers takes the first of these that says something."""
    named = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    files = [folder / f"sentence_{name}_config.json" for name in named]
    return next((file for file in files if read_optional(file)), files[0])
