"""What a part has measured: a line of JSON, for people and for `python -m benchmarks.gpu`."""

from __future__ import annotations

import json

Value = str | int | float


def report(**values: Value) -> None:
    """Floats with four digits."""
    short = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in values.items()}
    print(json.dumps(short), flush=True)
