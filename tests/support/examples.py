"""The files that make the weights of the project's own models."""

from __future__ import annotations

from build_scripts import code
from build_scripts.job import REPOSITORY

digits = code.load(REPOSITORY / "classifier" / "digits.py")
ranker = code.load(REPOSITORY / "ranker" / "seeded.py")
