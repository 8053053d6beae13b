"""The ensemble `embed` from a checkpoint: the encoder's weights, the tokenizer's vocabulary."""

import re
import shutil
from pathlib import Path

from rich.progress import Progress
from tokenizers import Tokenizer

from build_scripts.artifact import REPOSITORY, Artifact, BuildError
from build_scripts.checkpoint import Checkpoint


def artifacts(checkpoint: Checkpoint, repository: Path = REPOSITORY) -> list[Artifact]:
    """What `embed_encoder` and `embed_tokenizer` should hold for this checkpoint."""
    return [_encoder(checkpoint, repository), _tokenizer(checkpoint, repository)]


def _encoder(checkpoint: Checkpoint, repository: Path) -> Artifact:
    names = ("config.json", "model.safetensors")

    def write(directory: Path, progress: Progress) -> None:
        checkpoint.verify_weights()
        _verify_width(repository / "embed" / "config.pbtxt", checkpoint.hidden_size)
        for name in names:
            source = checkpoint.file(name)
            with (
                progress.open(source, "rb", description=f"embed_encoder: {name}") as reader,
                (directory / name).open("wb") as target,
            ):
                shutil.copyfileobj(reader, target, 1 << 20)

    return Artifact(
        version=repository / "embed_encoder" / "1",
        recipe={"builder": __name__, "family": "encoder"},
        sources={name: checkpoint.file(name) for name in names},
        write=write,
    )


def _tokenizer(checkpoint: Checkpoint, repository: Path) -> Artifact:
    source = checkpoint.file("tokenizer.json")

    def write(directory: Path, progress: Progress) -> None:
        task = progress.add_task("embed_tokenizer: tokenizer.json", total=1)
        tokenizer = Tokenizer.from_file(str(source))
        tokenizer.enable_truncation(checkpoint.max_tokens)
        tokenizer.no_padding()
        tokenizer.save(str(directory / "tokenizer.json"))
        progress.advance(task)

    return Artifact(
        version=repository / "embed_tokenizer" / "1",
        recipe={"builder": __name__, "max_tokens": checkpoint.max_tokens},
        sources={"tokenizer.json": source},
        write=write,
    )


def _verify_width(config: Path, hidden_size: int) -> None:
    """Raise BuildError unless the ensemble's EMBEDDING is as wide as the checkpoint."""
    output = re.search(r'"EMBEDDING".*?dims:\s*\[\s*(\d+)\s*\]', config.read_text(), re.DOTALL)
    if output is None or int(output[1]) != hidden_size:
        raise BuildError(
            f"The checkpoint's vectors have {hidden_size} elements: write dims: [ {hidden_size} ]"
            f" for EMBEDDING and [ -1, {hidden_size} ] for HIDDEN_STATES in the embed configs."
        )
