"""A checkpoint's tokenizer, in one file that gives transformers' ids.

tokenizer.json alone is not all of a tokenizer: transformers reads tokenizer_config.json beside it,
sentence-transformers its own file, and older checkpoints have other files. So AutoTokenizer makes
it, and what it makes is written down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from build_scripts import tokenizer_check, tokenizer_files
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.quiet import quiet

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PretrainedConfig

UNSET = 1 << 40
"""A model_max_length of that size stands for none."""


def written(checkpoint: Checkpoint) -> str:
    """What is served, as JSON."""
    return load(checkpoint).to_str(pretty=True)


def load(checkpoint: Checkpoint) -> Tokenizer:
    """A tokenizer that gives the ids of transformers' AutoTokenizer for that folder, with the
    settings of sentence-transformers; it cuts texts at the model's limit, but prompts, and pads
    nothing.

    Raises:
        BuildError: it cannot be read, contradicts itself, or one file cannot say what it does.
    """
    from tokenizers import Tokenizer

    theirs = _auto(checkpoint)
    _require_room(checkpoint, theirs)
    if checkpoint.settings.do_lower_case:
        _lowercase(theirs.backend_tokenizer)
    limit = _limit(checkpoint, theirs.model_max_length)
    ours = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    if checkpoint.task == "generate":
        ours.no_truncation()
    else:
        ours.enable_truncation(limit, direction=theirs.truncation_side)
    ours.no_padding()
    tokenizer_check.compare(checkpoint, ours, theirs, limit)
    return ours


def chat(checkpoint: Checkpoint) -> dict[str, object]:
    """The checkpoint's chat template, one or several by name, and the tokens that it may write."""
    theirs = _auto(checkpoint)
    tokens = {name: str(token) for name, token in theirs.special_tokens_map.items()}
    return {"chat_template": theirs.chat_template, "special_tokens": tokens}


def has_types(checkpoint: Checkpoint, config: PretrainedConfig) -> bool:
    """Whether the model tells the parts of a pair apart by TOKEN_TYPE_IDS."""
    types = _auto(checkpoint)("a", "b").get("token_type_ids", ())
    return any(types) and (getattr(config, "type_vocab_size", 0) or 0) > 1


def unknown(checkpoint: Checkpoint) -> int | None:
    """The id of what the vocabulary does not have, where it has one."""
    number: int | None = _auto(checkpoint).unk_token_id
    return number


def _auto(checkpoint: Checkpoint) -> Any:
    tokenizer_files.require(checkpoint.path)
    with quiet(), tokenizer_files.refused(checkpoint.path, "load"):
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
    tokenizer_files.check(checkpoint.path, found)
    if type(found.model_max_length) not in (int, float):
        raise BuildError(
            f"The checkpoint {checkpoint.path} has model_max_length {found.model_max_length!r} in"
            " tokenizer_config.json; it must be a whole number"
        )
    with tokenizer_files.refused(checkpoint.path, "use"):
        found("a", "b")  # One without any word, or a token for what is none, raises only here.
    return found


def _require_room(checkpoint: Checkpoint, theirs: Any) -> None:
    """For the special tokens: what cuts a text has to leave them."""
    special = theirs.num_special_tokens_to_add(pair=checkpoint.takes_pairs)
    said = {
        "model_max_length": theirs.model_max_length,
        "max_seq_length": checkpoint.settings.max_seq_length or UNSET,
        "max_position_embeddings": _positions(checkpoint),
    }
    for key, limit in said.items():
        unset = type(limit) is float and limit > UNSET
        if not unset and (type(limit) is not int or limit < max(special, 1)):
            raise BuildError(
                f"The checkpoint {checkpoint.path} has {key} {limit!r}; it must be a whole number,"
                f" and at least {max(special, 1)}: {special} tokens are added to every text."
            )


def _limit(checkpoint: Checkpoint, model_max_length: float) -> int:
    """Tokens of a text, special ones included: the least of what is said."""
    positions = _positions(checkpoint)
    wished = checkpoint.settings.max_seq_length
    if wished and model_max_length < min(wished, positions):
        raise BuildError(
            f"The checkpoint {checkpoint.path} cuts texts at {model_max_length} tokens by"
            f" tokenizer_config.json (model_max_length), but at {wished} by its"
            " sentence-transformers file (max_seq_length): make them say the same."
        )
    return int(min(wished or UNSET, model_max_length, positions))


def _positions(checkpoint: Checkpoint) -> int:
    """Tokens of the longest text that the model has positions for."""
    from python_mp.sharding.families.transformers import longest_text

    found = longest_text(checkpoint.architecture)
    return UNSET if found is None else found


def _lowercase(tokenizer: Tokenizer) -> None:
    """As sentence-transformers does: before all else, unless it is done somewhere."""
    from tokenizers import normalizers

    said = tokenizer.normalizer
    if not _lowercases(said):
        rest = [] if said is None else [said]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])


def _lowercases(normalizer: Any) -> bool:
    from tokenizers import normalizers

    if isinstance(normalizer, normalizers.Sequence):
        return any(_lowercases(each) for each in list[Any](normalizer))  # type: ignore[call-overload]
    return isinstance(normalizer, normalizers.Lowercase) or bool(
        getattr(normalizer, "lowercase", False)
    )
