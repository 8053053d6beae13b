"""`model_repository/MODEL/recipe.toml`: what is made of which checkpoint, and how good it must be.

engine and dtype are the lines to change; everything else says what has to hold for any of them.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from build_scripts import tables
from build_scripts.errors import BuildError

NAME = "recipe.toml"
Family = Literal["encoder", "module", "tokenizer"]
Engine = Literal["torch", "aot_inductor", "onnxruntime", "tensorrt"]
Dtype = Literal["float32", "bfloat16", "float16", "int8", "fp8"]
Size = Annotated[int, 1, 1 << 40]
Share = Annotated[float, 0, 1]
Triple = tuple[Size, Size, Size]

DTYPES: Mapping[Engine, tuple[Dtype, ...]] = {
    "torch": ("float32", "bfloat16", "float16", "int8"),
    "aot_inductor": ("float32", "bfloat16"),
    "onnxruntime": ("float32", "int8"),
    "tensorrt": ("float32", "float16", "bfloat16", "int8", "fp8"),
}


@dataclass(frozen=True)
class Layout:
    tensor_parallel_size: Size = 1
    pipeline_parallel_size: Size = 1
    replicas: Size = 1

    @property
    def world_size(self) -> int:
        """Ranks of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def __str__(self) -> str:
        return f"tp{self.tensor_parallel_size} pp{self.pipeline_parallel_size}"


@dataclass(frozen=True)
class Shapes:
    """Smallest, usual and largest size of the batch dimension that an engine is built for.

    It counts the tokens of a packed batch, or the rows of one without ragged inputs.
    """

    tokens: Triple | None = None
    rows: Triple | None = None

    def __post_init__(self) -> None:
        given = self.tokens or self.rows
        if self.tokens and self.rows:
            raise ValueError("tokens and rows are both there; a model has one of them")
        if given and list(given) != sorted(given):
            raise ValueError(f"{self.axis} is {list(given)}; it must be [min, opt, max]")

    @property
    def axis(self) -> str:
        return "tokens" if self.tokens else "rows"

    @property
    def sizes(self) -> Triple:
        """min, opt, max"""
        return self.tokens or self.rows or (1, 1, 1)


@dataclass(frozen=True)
class Calibration:
    """What int8 and fp8 are calibrated with, and which layers stay as they are."""

    samples: Size = 64
    keep_float: tuple[str, ...] = ()
    """Patterns of layers' names in the module, such as `blocks.*.down`."""


@dataclass(frozen=True)
class Bounds:
    """What is asked of an engine against the reference; None asks nothing."""

    cosine_min: Share | None = None
    cosine_mean: Share | None = None
    max_error: float | None = None
    mean_error: float | None = None
    top1_agreement_min: Share | None = None
    accuracy_min: Share | None = None

    def given(self) -> dict[str, float]:
        named = {field.name: getattr(self, field.name) for field in fields(Bounds)}
        return {name: bound for name, bound in named.items() if bound is not None}


@dataclass(frozen=True)
class Accuracy(Bounds):
    """The gate: bounds for every dtype, and those of one dtype that differ."""

    samples: Size = 200
    float32: Bounds = Bounds()
    bfloat16: Bounds = Bounds()
    float16: Bounds = Bounds()
    int8: Bounds = Bounds()
    fp8: Bounds = Bounds()

    def bounds(self, dtype: Dtype) -> Bounds:
        own: Bounds = getattr(self, dtype)
        return Bounds(**{**self.given(), **own.given()})


@dataclass(frozen=True)
class TensorRt:
    """Options handed to TensorRT's builder."""

    workspace_gib: Annotated[float, 0, 1024] | None = None
    optimization_level: Annotated[int, 0, 5] = 3
    version_compatible: bool = False
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    refit: bool = False
    strip_plan: bool = False


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe; None is as there."""

    engine: Engine | None = None
    dtype: Dtype | None = None
    tensor_parallel_size: Size | None = None
    pipeline_parallel_size: Size | None = None


@dataclass(frozen=True)
class Recipe:
    family: Family
    source: str
    engine: Engine = "torch"
    dtype: Dtype = "float32"
    keep: Size = 2
    layout: Layout = Layout()
    shapes: Shapes = Shapes()
    calibration: Calibration = Calibration()
    accuracy: Accuracy = Accuracy()
    tensorrt: TensorRt = TensorRt()
    variants: tuple[Variant, ...] = ()

    def __post_init__(self) -> None:
        if self.family == "tokenizer":
            return
        if not self.shapes.tokens and not self.shapes.rows:
            raise ValueError("shapes is missing: tokens = [min, opt, max], or rows")
        for engine, dtype in [(self.engine, self.dtype), *self._variants()]:
            if dtype not in DTYPES[engine]:
                has = ", ".join(DTYPES[engine])
                raise ValueError(f"engine {engine} has no dtype {dtype}; it has {has}")
            if not self.accuracy.bounds(dtype).given():
                raise ValueError(f"accuracy.{dtype} sets no bound, so that nothing can fail it")

    def _variants(self) -> list[tuple[Engine, Dtype]]:
        return [(each.engine or self.engine, each.dtype or self.dtype) for each in self.variants]

    def variant(self, variant: Variant) -> "Recipe":
        """The recipe with what differs in `variant`, and without variants of its own."""
        layout = replace(
            self.layout,
            tensor_parallel_size=variant.tensor_parallel_size or self.layout.tensor_parallel_size,
            pipeline_parallel_size=variant.pipeline_parallel_size
            or self.layout.pipeline_parallel_size,
        )
        return replace(
            self,
            engine=variant.engine or self.engine,
            dtype=variant.dtype or self.dtype,
            layout=layout,
            variants=(),
        )

    def as_json(self) -> dict[str, Any]:
        """Everything that decides what is built, as JSON values."""
        values = asdict(self)
        del values["keep"], values["variants"], values["layout"]["replicas"]
        return values


def check(text: str, where: str) -> None:
    """Raises BuildError where a recipe of this text, valid TOML, would not make sense, its variants
    included: they take from the recipe what they do not say themselves."""
    try:
        tables.read(Recipe, tomllib.loads(text), where)
    except BuildError as error:
        raise BuildError(
            f"{error}. Is it a variant? Those without engine or dtype take the recipe's: name both"
        ) from None


def load(folder: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a model's folder, with `overrides` in place of what it says.

    Args:
        overrides: keys as in the file; a table's keys replace those of the table.

    Raises:
        BuildError: it cannot be read or does not make sense; the message names file and key.
    """
    path = folder / NAME
    try:
        given = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise BuildError(
            f"{path} is missing: there is nothing to build '{folder.name}' by"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BuildError(f"{path} is not valid TOML: {error}") from None
    if overrides:
        given.pop("variants", None)  # They are the recipe's as it is written.
    for key, value in (overrides or {}).items():
        table = isinstance(value, Mapping) and isinstance(given.get(key, {}), dict)
        given[key] = given.get(key, {}) | value if table else value
    if given.get("family") == "tokenizer" and (extra := set(given) - {"family", "source", "keep"}):
        raise BuildError(f"{path}: a tokenizer has family, source and keep; not {sorted(extra)[0]}")
    return tables.read(Recipe, given, str(path))
