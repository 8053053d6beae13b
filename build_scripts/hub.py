"""Checkpoints on the Hugging Face hub: one commit, no code and no pickle."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from build_scripts.errors import BuildError

TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")
ALLOWED = ["*.safetensors", *TEXTS]
COMMIT = re.compile("[0-9a-f]{40}")


def require_commit(name: str) -> None:
    """A branch or a tag may be another checkpoint tomorrow, under the same key. Raises BuildError
    for one, with the commit that it is now."""
    repository, _, revision = name.partition("@")
    if COMMIT.fullmatch(revision):
        return
    import huggingface_hub

    try:
        now = huggingface_hub.model_info(repository, revision=revision or None).sha
        hint = f"write hub:{repository}@{now}, which it is now"
    except Exception as error:
        hint = (
            f"write hub:{repository}@ and its 40 digits (the hub did not say them: {_said(error)})"
        )
    raise BuildError(f"The source hub:{name} is not one checkpoint for ever: {hint}.")


def located(name: str, patterns: Sequence[str] = ALLOWED) -> tuple[str, Path]:
    """The source with the commit that its revision is now, and where its files lie in the hub's
    cache; those of `patterns` that are not there are got, with bars on a terminal.

    Raises:
        BuildError: it is not there, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        cached = Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=[*patterns])
        )
    except Exception as error:
        raise BuildError(f"hub:{name} cannot be downloaded: {_said(error)}") from error
    return f"hub:{repository}@{cached.name}", cached


def download(name: str, folder: Path) -> str:
    """Put the hub's files into `folder`; returns the source with the commit that was got."""
    source, cached = located(name)
    shutil.copytree(cached, folder, copy_function=_link)
    return source


def _link(source: str, target: str) -> None:
    """A second name for the file in the hub's cache, or a copy on another disk."""
    real = Path(source).resolve()
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def _said(error: Exception) -> str:
    """Of many classes of many libraries, all with a sentence."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
