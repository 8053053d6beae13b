"""`model_repository/NAME/recipe.toml`: what is made of which checkpoint, and how good it must be.

It is of the model NAME, or names one source and all models that are made of it (`[steps.MODEL]`).
engine and dtype are the lines to change; everything else says what has to hold for any of them.
"""

from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from python_mp.model.parameters import ENGINES

Family = Literal[
    "transformers",
    "module",
    "tokenizer",
    "images",
    "prompt",
    "vectors",
    "scores",
    "labels",
    "spans",
    "text",
]
STEPS = "tokenizer", "images", "prompt", "vectors", "scores", "labels", "spans", "text"
"""What runs before and after a model in Triton's own Python backend."""
Engine = Literal["torch", "aot_inductor", "onnxruntime", "tensorrt"]
Dtype = Literal["float32", "bfloat16", "float16", "int8", "int8_dynamic", "fp8"]
Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]
Size = Annotated[int, Meta(ge=1, le=1 << 40)]
Share = Annotated[float, Meta(ge=0, le=1)]
Error = Annotated[float, Meta(ge=0)]
Triple = tuple[Size, Size, Size]


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file. The docstrings stand in the schema that editors read."""

    def as_json(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in self.__struct_fields__}


class Shapes(Table, frozen=True):
    """Smallest, usual and largest size of the batch dimension that an engine is built for.

    It counts the tokens of a packed batch, or the rows of one without ragged inputs.

    `samples` has, by the names of inputs, their dims with a size for each -1 of config.pbtxt: those
    that samples have in turn where the model brings none. Graphs are traced with the first.
    """

    tokens: Triple | None = None
    rows: Triple | None = None
    samples: tuple[dict[str, tuple[Size, ...]], ...] = ()

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


class Calibration(Table, frozen=True):
    """What int8 and fp8 are calibrated with, and which layers stay as they are: patterns of their
    names in the module, such as `blocks.*.down`."""

    samples: Size = 64
    keep_float: tuple[str, ...] = ()


class Bounds(Table, frozen=True):
    """What is asked of an engine against the reference; what is not there is not asked."""

    cosine_min: Share | None = None
    cosine_mean: Share | None = None
    max_error: Error | None = None
    mean_error: Error | None = None
    top1_agreement_min: Share | None = None
    accuracy_min: Share | None = None

    def given(self) -> dict[str, float]:
        named = {name: getattr(self, name) for name in Bounds.__struct_fields__}
        return {name: bound for name, bound in named.items() if bound is not None}


class Accuracy(Bounds, frozen=True):
    """The gate: how many samples, bounds for every dtype, and those of one dtype that differ."""

    samples: Size = 200
    float32: Bounds = Bounds()
    bfloat16: Bounds = Bounds()
    float16: Bounds = Bounds()
    int8: Bounds = Bounds()
    int8_dynamic: Bounds = Bounds()
    fp8: Bounds = Bounds()

    def bounds(self, dtype: Dtype) -> Bounds:
        own: Bounds = getattr(self, dtype)
        return Bounds(**{**self.given(), **own.given()})


class TensorRt(Table, frozen=True):
    """Options handed to TensorRT's builder."""

    workspace_gib: Annotated[float, Meta(ge=0, le=1024)] | None = None
    optimization_level: Annotated[int, Meta(ge=0, le=5)] = 3
    version_compatible: bool = False
    hardware_compatibility: Compatibility = "none"
    refit: bool = False
    strip_plan: bool = False


class Variant(Table, frozen=True):
    """What differs from the recipe, and from the layout of config.pbtxt: built and verified by
    `make build`, not published."""

    engine: Engine | None = None
    dtype: Dtype | None = None
    tensor_parallel_size: Size | None = None
    pipeline_parallel_size: Size | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Of the layout, those that differ."""
        names = "tensor_parallel_size", "pipeline_parallel_size"
        return {name: size for name in names if (size := getattr(self, name))}


class Step(Table, frozen=True, kw_only=True):
    """A model: what is made of the recipe's source for it."""

    family: Family
    engine: Engine = "torch"
    dtype: Dtype = "float32"
    keep: Size = 2
    shapes: Shapes = Shapes()
    calibration: Calibration = Calibration()
    accuracy: Accuracy = Accuracy()
    tensorrt: TensorRt = TensorRt()
    variants: tuple[Variant, ...] = ()

    @property
    def is_step(self) -> bool:
        """Which has neither an engine nor shards."""
        return self.family in STEPS

    def __post_init__(self) -> None:
        if self.is_step:
            return
        if not self.shapes.tokens and not self.shapes.rows:
            raise ValueError("shapes is missing: tokens = [min, opt, max], or rows")
        for engine, dtype in [(self.engine, self.dtype), *self._variants()]:
            if dtype not in ENGINES[engine]:
                has, others = ", ".join(ENGINES[engine]), ", ".join(_with(dtype))
                raise ValueError(
                    f"engine {engine} has no dtype {dtype}; it has {has}. Engines with it: {others}"
                )
            if not self.accuracy.bounds(dtype).given():
                raise ValueError(f"accuracy.{dtype} sets no bound, so that nothing can fail it")

    def _variants(self) -> list[tuple[Engine, Dtype]]:
        return [(each.engine or self.engine, each.dtype or self.dtype) for each in self.variants]


class Recipe(Step, frozen=True, kw_only=True):
    """The recipe of one model. `source` is package:NAME, a folder, hub:OWNER/NAME@COMMIT, or
    make:FILE.py, a file beside the recipe that makes it."""

    source: str

    def variant(self, variant: Variant) -> "Recipe":
        """The recipe with engine and dtype of the variant, and without variants of its own."""
        engine, dtype = variant.engine or self.engine, variant.dtype or self.dtype
        return msgspec.structs.replace(self, engine=engine, dtype=dtype, variants=())

    def as_json(self) -> dict[str, Any]:
        """Everything that decides what is built, as JSON values."""
        aside = "keep", "variants"
        return {key: value for key, value in super().as_json().items() if key not in aside}


class Ensemble(Table, frozen=True):
    """A recipe of several models, by their names; all are made of one source."""

    source: str
    steps: dict[str, Step]


def _plain(value: Any) -> Any:
    if isinstance(value, Table):
        return value.as_json()
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _with(dtype: Dtype) -> list[str]:
    return [name for name in get_args(Engine) if dtype in ENGINES[name]]


TABLES = Recipe, Ensemble, Shapes, Calibration, Accuracy, TensorRt, Variant
