"""The files of a sentence-transformers folder, key by key: what each may say.

The keys and their defaults are those of sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from build_scripts.errors import BuildError
from build_scripts.storage import read_optional

ANY = object()
"""A tuple lists several values."""
MODALITIES = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
MODEL = {
    "__version__": ANY,
    "requirements": ANY,  # of the Python that trains and evaluates it
    "similarity_fn_name": ANY,  # how clients compare vectors, not how they come about
    "prompts": ANY,
    "default_prompt_name": ANY,
    "truncate_dim": ANY,
    "model_type": "SentenceTransformer",
}
TRANSFORMER = {
    "max_seq_length": ANY,
    "do_lower_case": ANY,
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": MODALITIES,
    "unpad_inputs": ANY,
}
POOLING = {
    "embedding_dimension": ANY,
    "word_embedding_dimension": ANY,
    "pooling_mode": ANY,
    "include_prompt": ANY,
}
VECTOR = {
    "module_input_name": "sentence_embedding",
    "module_output_name": ("sentence_embedding", None),
}
DENSE = {
    "in_features": ANY,
    "out_features": ANY,
    "bias": ANY,
    "activation_function": ANY,
    "use_residual": ANY,
    **VECTOR,
}


def known(file: Path, keys: Mapping[str, object]) -> dict[str, Any]:
    """What the file says; nothing where there is none.

    Raises:
        BuildError: a key is not known, or has a value that is not computed.
    """
    said = read_optional(file)
    refuse_unknown(file, said, keys)
    return said


def refuse_unknown(file: Path, said: Mapping[str, Any], keys: Mapping[str, object]) -> None:
    for key, value in _spoken(said, keys):
        if key not in keys:
            raise BuildError(f"{file}: {key} is {value!r}, which the ensemble embed does not do.")
        wanted = keys[key]
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        if ANY not in wanted and value not in wanted:
            raise BuildError(f"{file}: {key} is {value!r}; the ensemble embed has {wanted[0]!r}.")


def whole(file: Path, said: Mapping[str, Any], key: str) -> int | None:
    """A number of something, above 0; None where nothing is said.

    Raises:
        BuildError: it is none.
    """
    value = said.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise BuildError(f"{file}: {key} is {value!r}; it must be a whole number above 0")
    return value


def _spoken(said: Mapping[str, Any], keys: Mapping[str, object]) -> Iterator[tuple[str, Any]]:
    """Without keys that say nothing: null, or empty. False can be an answer, and so can null where
    one value is wanted."""
    for key, value in said.items():
        wanted = keys.get(key, ANY) is not ANY
        if wanted or (value is not None and value not in ("", [], {})):
            yield key, value
