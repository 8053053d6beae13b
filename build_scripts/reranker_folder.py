"""What a cross-encoder's folder says beside its model: honoured by an ensemble of the task
`rerank`, or refused by name, as sentence-transformers' CrossEncoder reads it.

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
ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": "identity"}
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
class Reranker:
    """
    Attributes:
        settings: how pairs are read.
        activation: from a pair's logit to its score; one of activations.BY_NAME.
    """

    settings: Settings
    activation: str


def read(folder: Path, config: Mapping[str, Any]) -> Reranker:
    """Raises BuildError, naming file and key, for what `rerank` does not do."""
    for name in config.get("architectures") or ():
        if not str(name).endswith("ForSequenceClassification"):
            raise BuildError(
                f"{folder / 'config.json'} has the architecture {name}; rerank has models with one"
                " logit for a pair (...ForSequenceClassification): rerankers that answer yes or no,"
                " as Qwen3-Reranker, are not served."
            )
    if (classes := len(config.get("id2label") or {0: ""})) != 1:
        raise BuildError(
            f"{folder / 'config.json'} has {classes} labels; rerank needs one. Single texts are"
            " sorted into several by the task classify."
        )
    chained = (folder / MODULES).is_file()
    if chained:
        _require_one_module(folder / MODULES)
    said = {name: _known(folder / name) if chained else {} for name in KNOWN}
    length = said[TRANSFORMER].get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        file = folder / TRANSFORMER
        raise BuildError(f"{file}: max_seq_length is {length!r}; it must be a whole number above 0")
    settings = Settings(length, bool(said[TRANSFORMER].get("do_lower_case")))
    return Reranker(settings, _activation(folder, said[MODEL], config))


def _require_one_module(file: Path) -> None:
    chain = [str(module.get("type")).rpartition(".")[2] for module in read_json(file, list)]
    if chain != ["Transformer"]:
        raise BuildError(f"{file} chains {', '.join(chain)}; rerank computes Transformer alone.")


def _known(file: Path) -> dict[str, Any]:
    said, keys = read_optional(file), KNOWN[file.name]
    for key, value in said.items():
        if key not in keys and value not in (None, "", [], {}):
            raise BuildError(f"{file}: {key} is {value!r}, which rerank does not do.")
        if keys.get(key) and value not in keys[key]:
            raise BuildError(f"{file}: {key} is {value!r}; rerank has {keys[key][0]!r}.")
    return said


def _activation(folder: Path, model: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """sentence-transformers takes the first that says something."""
    own = config.get("sentence_transformers") or {}
    said = {
        folder / MODEL: model.get("activation_fn"),
        folder / "config.json": own.get("activation_fn")
        or config.get("sbert_ce_default_activation_function"),
    }
    file, path = next(((f, p) for f, p in said.items() if p), (folder, "torch.nn.Sigmoid"))
    package, _, name = str(path).rpartition(".")
    if not package.startswith("torch.") or name not in ACTIVATIONS:
        raise BuildError(
            f"{file}: activation_fn is {path!r}; rerank has torch.nn's {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]
