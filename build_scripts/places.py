"""Where things lie unless the command says otherwise."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
REPOSITORY = PROJECT / "model_repository"
WORKSPACE = PROJECT / "build" / "engines"
