"""What a cross-encoder's folder says beside its model: honoured by an ensemble of the task
`rerank`, or of several labels `classify`, or refused by name, as sentence-transformers'
CrossEncoder reads it.

The keys and their defaults are those of sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_scripts.errors import BuildError
from build_scripts.sentence_folder import Settings
from build_scripts.storage import read_json, read_optional

MODULES, MODEL = "modules.json", "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": "identity", "Softmax": "softmax"}
KNOWN: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    MODEL: {
        "__version__": (),
        "requirements": (),
        "activation_fn": (),
        "prompts": (),
        "default_prompt_name": (None, ""),
        "model_type": ("CrossEncoder",),
    },
    TRANSFORMER: {
        "max_seq_length": (),
        "do_lower_case": (),
        "unpad_inputs": (),
        "transformer_task": ("sequence-classification",),
        "module_output_name": ("scores",),
        "modality_config": ({"text": {"method": "forward", "method_output_name": "logits"}},),
    },
}
"""Of each file the keys that are known, with the only values that are computed; () for any."""


@dataclass(frozen=True)
class CrossEncoder:
    """
    Attributes:
        settings: how pairs are read.
        activation: from a pair's logits to its scores; one of activations.BY_NAME.
    """

    settings: Settings
    activation: str


def says_so(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder is that of a CrossEncoder, and not just of a classifier."""
    chained = (folder / MODULES).is_file()
    is_named = chained and read_optional(folder / MODEL).get("model_type") == "CrossEncoder"
    return is_named or bool(_said_by(config))


def require_one_score(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises BuildError for what `rerank` does not do."""
    for name in config.get("architectures") or ():
        if not str(name).endswith("ForSequenceClassification"):
            raise BuildError(
                f"{folder / 'config.json'} has the architecture {name}; rerank has models with one"
                " logit for a pair (...ForSequenceClassification): rerankers that answer yes or no,"
                " as Qwen3-Reranker, are not served."
            )
    if (classes := _labels(config)) != 1:
        raise BuildError(
            f"{folder / 'config.json'} has {classes} labels; rerank needs one: take the"
            " task classify, which gives each a score, of pairs too."
        )


def read(folder: Path, config: Mapping[str, Any]) -> CrossEncoder:
    """Raises BuildError, naming file and key, for what is not computed."""
    chained = (folder / MODULES).is_file()
    if chained:
        _require_one_module(folder / MODULES)
    said = {name: _known(folder / name) if chained else {} for name in KNOWN}
    length = said[TRANSFORMER].get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        file = folder / TRANSFORMER
        raise BuildError(f"{file}: max_seq_length is {length!r}; it must be a whole number above 0")
    settings = Settings(length, bool(said[TRANSFORMER].get("do_lower_case")))
    return CrossEncoder(settings, _activation(folder, said[MODEL], config))


def _require_one_module(file: Path) -> None:
    chain = [str(module.get("type")).rpartition(".")[2] for module in read_json(file, list)]
    if chain != ["Transformer"]:
        raise BuildError(
            f"{file} chains {', '.join(chain)}; of a CrossEncoder, Transformer is computed alone."
        )


def _known(file: Path) -> dict[str, Any]:
    said, keys = read_optional(file), KNOWN[file.name]
    for key, value in said.items():
        if key not in keys and value not in (None, "", [], {}):
            raise BuildError(f"{file}: {key} is {value!r}, which is not done here.")
        if keys.get(key) and value not in keys[key]:
            raise BuildError(f"{file}: {key} is {value!r}; there is only {keys[key][0]!r}.")
    return said


def _activation(folder: Path, model: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """sentence-transformers takes the first that says something."""
    usual = "Sigmoid" if _labels(config) == 1 else "Identity"
    said = {folder / MODEL: model.get("activation_fn"), folder / "config.json": _said_by(config)}
    file, path = next(((f, p) for f, p in said.items() if p), (folder, f"torch.nn.{usual}"))
    package, _, name = str(path).rpartition(".")
    if not package.startswith("torch.") or name not in ACTIVATIONS:
        raise BuildError(
            f"{file}: activation_fn is {path!r}; there are torch.nn's {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


def _said_by(config: Mapping[str, Any]) -> Any:
    own = config.get("sentence_transformers") or {}
    return own.get("activation_fn") or config.get("sbert_ce_default_activation_function")


def _labels(config: Mapping[str, Any]) -> int:
    return len(config.get("id2label") or {0: ""})
