"""What a sentence-transformers folder says beside its model: honoured by the ensemble `embed`, or
refused by name. `embed` takes the mean over the tokens and gives it the length 1.

The keys and their defaults are those of sentence-transformers 6.2.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_scripts.errors import BuildError
from build_scripts.storage import read_json, read_optional

CHAIN = ("Transformer", "Pooling", "Normalize")
ANY = object()
DEFAULT_MODALITIES = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
MODEL = {
    "__version__": ANY,
    "requirements": ANY,  # of the Python that trains and evaluates it
    "similarity_fn_name": ANY,  # how clients compare vectors, not how they come about
    "prompts": ANY,  # one that is asked for by its name stands in the client's text
    "default_prompt_name": ANY,
    "model_type": "SentenceTransformer",
}
TRANSFORMER = {
    "max_seq_length": ANY,
    "do_lower_case": ANY,
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": DEFAULT_MODALITIES,
    "unpad_inputs": ANY,
}
POOLING = {
    "embedding_dimension": ANY,
    "word_embedding_dimension": ANY,
    "pooling_mode": ANY,
    "include_prompt": True,
}
NORMALIZE = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
}
LEGACY_MODE = "pooling_mode_"
LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
MODES = tuple(sorted(LEGACY_MODES.values()))


@dataclass(frozen=True)
class Settings:
    """How texts are read: the length they are cut at, if it is said, and lowercasing; and what is
    made of their tokens' hidden states."""

    max_seq_length: int | None = None
    do_lower_case: bool = False
    pooling: tuple[str, ...] = ("mean",)


def read(folder: Path) -> Settings:
    """Raises BuildError, naming file and key, for what `embed` does not do."""
    pooling = _modules(folder)
    _prompts(folder / "config_sentence_transformers.json")
    file = _transformer_file(folder)
    said = _known(file, TRANSFORMER)
    length = said.get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise BuildError(f"{file}: max_seq_length is {length!r}; it must be a whole number above 0")
    return Settings(length, bool(said.get("do_lower_case")), pooling)


def _modules(folder: Path) -> tuple[str, ...]:
    """The pooling of modules.json's chain; without it one that lies there is read all the same."""
    pooling: tuple[str, ...] = ("mean",)
    if not (folder / "modules.json").is_file():
        for file in sorted(folder.glob("*_Pooling/config.json")):
            pooling = _pooling(file)
        return pooling
    kinds = []
    for module in read_json(folder / "modules.json", list):
        package, _, kind = str(module.get("type")).rpartition(".")
        kinds.append(kind if package.startswith("sentence_transformers.") else module.get("type"))
        _module(folder, module, kind)
        if kind == "Pooling":
            pooling = _pooling(folder / str(module.get("path", "")) / "config.json")
    if tuple(kinds) != CHAIN:
        raise BuildError(
            f"{folder / 'modules.json'} chains {', '.join(map(str, kinds))}; embed computes"
            f" {', '.join(CHAIN)}: other vectors would be served than sentence-transformers gives."
        )
    return pooling


def _module(folder: Path, module: Mapping[str, Any], kind: str) -> None:
    path = str(module.get("path", ""))
    if module.get("kwargs"):
        raise BuildError(f"{folder / 'modules.json'}: {kind} has kwargs, which embed has not.")
    if kind == "Transformer" and path:
        raise BuildError(
            f"{folder / 'modules.json'} has its Transformer in {path}/: name that folder, with the"
            " other files in it, as the source."
        )
    if kind == "Normalize":
        _known(folder / path / "config.json", NORMALIZE)


def _pooling(file: Path) -> tuple[str, ...]:
    """Its modes. Before 5.4 each had a switch of its own; where nothing is said it is the mean."""
    said = read_optional(file)
    legacy = [key for key in said if key.startswith(LEGACY_MODE)]
    _refuse_unknown(file, {key: said[key] for key in said.keys() - legacy}, POOLING)
    on = [LEGACY_MODES.get(key, key) for key in legacy if said[key]]
    mode = said.get("pooling_mode", on if legacy else "mean")
    modes = tuple(mode) if isinstance(mode, list) else (mode,)
    for each in modes:
        if each not in MODES:
            raise BuildError(f"{file}: pooling {each!r} is not known; there are {', '.join(MODES)}")
    return modes or ("mean",)


def _prompts(file: Path) -> None:
    said = _known(file, MODEL)
    default = said.get("default_prompt_name")
    if default and (said.get("prompts") or {}).get(default) != "":
        raise BuildError(
            f"{file}: default_prompt_name is {default!r}, a prompt that would stand before every"
            " text; embed puts none there. Set it to null, and let clients write it."
        )


def _transformer_file(folder: Path) -> Path:
    """sentence-transformers takes the first of these that says something."""
    named = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    files = [folder / f"sentence_{name}_config.json" for name in named]
    return next((file for file in files if read_optional(file)), files[0])


def _known(file: Path, keys: Mapping[str, object]) -> dict[str, Any]:
    said = read_optional(file)
    _refuse_unknown(file, said, keys)
    return said


def _refuse_unknown(file: Path, said: Mapping[str, Any], keys: Mapping[str, object]) -> None:
    for key, value in _spoken(said, keys):
        if key not in keys:
            raise BuildError(f"{file}: {key} is {value!r}, which the ensemble embed does not do.")
        if keys[key] is not ANY and value != keys[key]:
            raise BuildError(f"{file}: {key} is {value!r}; the ensemble embed has {keys[key]!r}.")


def _spoken(said: Mapping[str, Any], keys: Mapping[str, object]) -> Iterator[tuple[str, Any]]:
    """Without keys that say nothing: null, or empty. False can be an answer, and so can null where
    one value is wanted."""
    for key, value in said.items():
        wanted = keys.get(key, ANY) is not ANY
        if wanted or (value is not None and value not in ("", [], {})):
            yield key, value
