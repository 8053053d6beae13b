"""What SentencePiece itself makes of texts: its model's file as argument, texts as a JSON list on
the standard input, lists of pieces on the output; null stands for one that the model does not know.

A process of its own, since the library (0.2.1) crashes in one that has loaded torchao.
"""

import json
import subprocess
import sys
from pathlib import Path

from build_scripts.errors import BuildError
from build_scripts.places import PROJECT

Pieces = list[str | None]


def of(model: Path, texts: list[str]) -> list[Pieces]:
    """Raises BuildError where the file is no model."""
    command = [sys.executable, "-m", __name__, str(model)]
    done = subprocess.run(
        command, input=json.dumps(texts), capture_output=True, text=True, cwd=PROJECT
    )
    if done.returncode:
        raise BuildError(
            f"SentencePiece cannot read {model}: it is damaged, or no model of its own"
        )
    found: list[Pieces] = json.loads(done.stdout)
    return found


def _print(path: str) -> None:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(path)
    found = [
        [None if model.is_unknown(model.piece_to_id(piece)) else piece for piece in pieces]
        for pieces in model.encode(json.load(sys.stdin), out_type=str)
    ]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _print(sys.argv[1])
