"""task.json: what is made of a model's hidden states. The build writes it, ranks read it.

Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ...model.errors import LoadError
from ...model.paths import present, regular

NAME, WEIGHTS = "task.json", "head.safetensors"
Kind = Literal["embed", "rerank", "classify", "tokens", "generate"]
"""One of parameters.TASKS."""
OUTPUTS: Mapping[Kind | None, str] = {
    None: "HIDDEN_STATES",
    "embed": "SENTENCE_EMBEDDING",
    "rerank": "LOGITS",
    "classify": "LOGITS",
    "tokens": "LOGITS",
    "generate": "LOGITS",
}


ACTIVATIONS = (
    *("Identity", "Tanh", "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU"),
    *("Mish", "Sigmoid", "LogSigmoid", "Hardsigmoid", "Hardswish", "Hardtanh", "Softplus"),
    *("Softsign", "Tanhshrink"),
)
"""Of torch.nn: of each element by itself, without a parameter."""


@dataclass(frozen=True)
class Layer:
    """What is made of a text's vector, as by sentence-transformers' module of that name.

    Attributes:
        kind: Dense, `activation(x @ weight.T + bias)`; or Normalize, to length 1.
        name: Dense's, which its tensors' names begin with.
        inputs: the width of what it is given.
        outputs: the width of what it makes.
        bias: whether it has one.
        residual: whether it adds what it is given, projected where the widths differ.
        activation: one of ACTIVATIONS.
    """

    kind: Literal["Dense", "Normalize"]
    name: str = ""
    inputs: int = 0
    outputs: int = 0
    bias: bool = True
    residual: bool = False
    activation: str = "Tanh"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its tensors by their names."""
        if self.kind == "Normalize":
            return {}
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": (self.outputs, self.inputs)}
        if self.bias:
            shapes["linear.bias"] = (self.outputs,)
        if self.residual and self.inputs != self.outputs:
            shapes["residual.weight"] = (self.outputs, self.inputs)
        return {f"{self.name}.{name}": shape for name, shape in shapes.items()}


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        pooling: of `embed`: modes of pooling.MODES, whose vectors stand one behind the other.
        layers: of `embed`: what is made of these.
        context_length: of `generate`: most tokens of a prompt and what follows it.
        vocabulary: of `generate`: ids are 0 to vocabulary - 1.
        eos_token_ids: of `generate`: those by which the model says that it is through.
    """

    kind: Kind
    pooling: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    context_length: int = 0
    vocabulary: int = 0
    eos_token_ids: tuple[int, ...] = ()

    def write(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")


def read(folder: Path) -> Task | None:
    """The task of a version directory; None where hidden states are the outputs.

    Raises:
        LoadError: it is not as the build writes it.
    """
    if not present(folder, NAME):
        return None
    path = regular(folder, NAME)
    try:
        said: dict[str, Any] = json.loads(path.read_text())
        layers = tuple(Layer(**each) for each in said.pop("layers", ()))
        return Task(layers=layers, **{name: _frozen(value) for name, value in said.items()})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{path} is not as a build writes it: {error}") from None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
