"""Checkpoints in one file, GGUF, of llama.cpp: written once as a folder like any other, with the
weights in float32, and kept for all later builds.

transformers reads the file. What it leaves out is done here: how texts are split before they
become tokens, all tokens that end an answer, and whether the tokens are those of the file.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from build_scripts import storage, workers
from build_scripts.code import versions
from build_scripts.errors import BuildError
from build_scripts.places import WORKSPACE
from build_scripts.quiet import quiet

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEPT = WORKSPACE.parent / "gguf"
TOOLS = "accelerate", "gguf", "tokenizers", "transformers"
BYTE_LEVEL = "gpt2"
AS_GPT2 = frozenset(
    ("gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "gigachat", "a.x-4.0", "mellum")
)
WITH_DIGITS = frozenset(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"))
"""Names of ways to split (tokenizer.ggml.pre) that llama.cpp has and transformers does not: as
GPT-2, with and without each digit by itself."""
ENDS = "eos", "eot", "eom"


def of(place: Path) -> Path:
    """The folder of the checkpoint at `place`: that itself, unless it is a GGUF file, or a folder
    with one and no config.json.

    Raises:
        BuildError: there are several, or the file cannot be read.
    """
    if place.suffix == ".gguf" and place.is_file():
        return _folder(place)
    if (place / "config.json").is_file() or not (found := sorted(place.glob("*.gguf"))):
        return place
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise BuildError(f"{place} holds {names}: name one of the files")
    return _folder(found[0])


def _folder(file: Path) -> Path:
    """Named by the file and by what reads it; what others have read of the file is removed."""
    how = storage.digest([versions(TOOLS), storage.sha256(Path(__file__))])
    of_file = f"{file.stem}-{storage.sha256(file)[:12]}"
    folder = KEPT / f"{of_file}-{how[:8]}"
    if folder.is_dir():
        return folder
    if not find_spec("gguf"):
        raise BuildError(
            f"{file} is read with the packages gguf and accelerate: run `make install`"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with storage.locked(folder.parent, lambda: None):
        if not folder.is_dir():
            print(f"reading {file.name}, once", file=sys.stderr, flush=True)
            with storage.appearing(folder) as building, workers.pool(1) as pool:
                pool.submit(write, file, building).result()
        for other in {*KEPT.glob(f"{glob.escape(of_file)}-*")} - {folder}:
            storage.remove(other)
    return folder


def write(file: Path, folder: Path) -> None:
    """The checkpoint of `file` as a folder of Hugging Face.

    Raises:
        BuildError: it is damaged, or of what is not known.
    """
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")  # Read as they are imported.
    import torch  # noqa: F401  # Which sets what its loggers say.

    with quiet():
        reader = _opened(file)
        said = {name: field.contents() for name, field in reader.fields.items()}
        tokenizer = _tokenizer(file, said)
        model = _model(file)
    model.config.architectures = [type(model).__name__]
    ends = [said.get(f"tokenizer.ggml.{name}_token_id") for name in ENDS]
    model.generation_config.eos_token_id = [
        *dict.fromkeys(each for each in ends if each is not None)
    ]
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(model.state_dict(), folder)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _opened(file: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except Exception as error:  # of numpy too, where the file ends too early
        raise BuildError(f"{file} is no GGUF file, or damaged: {_said(error)}") from None


def _model(file: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
    except Exception as error:  # many classes, all with a sentence
        raise BuildError(f"transformers cannot load {file}: {_said(error)}") from None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _tokenizer(file: Path, said: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    splits = _splits(file, said)
    try:
        found = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
    except Exception as error:
        raise BuildError(
            f"transformers cannot load the tokenizer of {file}: {_said(error)}"
        ) from None
    if splits:
        found.backend_tokenizer.pre_tokenizer = splits
    _compare(file, found.backend_tokenizer, said)
    found.model_max_length = said[f"{said['general.architecture']}.context_length"]
    return found


def _splits(file: Path, said: Mapping[str, Any]) -> PreTokenizer | None:
    """What splits texts, where transformers would take GPT-2's way for all that it does not
    know."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    name = said.get("tokenizer.ggml.pre")
    is_known = name in AS_GPT2 or name in GGUF_PRE_TOKENIZER_SPLITS
    if said.get("tokenizer.ggml.model") != BYTE_LEVEL or is_known:
        return None
    if name in WITH_DIGITS:
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), rest])
    raise BuildError(
        f"{file} splits texts as {name!r} (tokenizer.ggml.pre), which is not known here: its ids"
        " would be wrong; take the original checkpoint, with its tokenizer.json"
    )


def _compare(file: Path, tokenizer: Tokenizer, said: Mapping[str, Any]) -> None:
    """Tokens against the file's list; those of spaces are spelt in another way."""
    for number, token in enumerate(said["tokenizer.ggml.tokens"]):
        found = tokenizer.id_to_token(number)
        if found != token and token.strip():
            raise BuildError(
                f"{file}: token {number} is {token!r}, but transformers makes {found!r} of it: take"
                " the original checkpoint, with its tokenizer.json"
            )


def _said(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
