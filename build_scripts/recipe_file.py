"""recipe.toml as a file: which there are, of which models, and what one says of a model.

python -m build_scripts.recipe_file    prints the schema for editors, docs/recipe.schema.json
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from build_scripts.errors import BuildError
from build_scripts.places import REPOSITORY
from build_scripts.recipe import (
    STEPS,
    TABLES,
    Compatibility,
    Dtype,
    Engine,
    Ensemble,
    Family,
    Recipe,
)

NAME = "recipe.toml"
T = TypeVar("T")


def of_model(model: str, repository: Path = REPOSITORY) -> Path:
    """The recipe that the model is built by. Raises BuildError where there is none, or two."""
    found = [path for path, names in every_recipe(repository).items() if model in names]
    if len(found) > 1:
        raise BuildError(f"{model} is built by {' and by '.join(map(str, found))}: remove one")
    if not found:
        known = ", ".join(every_model(repository)) or "none"
        raise BuildError(f"No recipe in {repository} makes '{model}'; those with one: {known}")
    return found[0]


def every_recipe(repository: Path = REPOSITORY) -> dict[Path, list[str]]:
    """All recipes, and the models that each is of; one that cannot be read is of its folder's."""
    found = {}
    for path in sorted(repository.glob(f"*/{NAME}")):
        try:
            found[path] = models(path)
        except BuildError:
            found[path] = [path.parent.name]
    return found


def every_model(repository: Path = REPOSITORY) -> list[str]:
    """Names of the models that have a recipe."""
    return sorted(name for names in every_recipe(repository).values() for name in names)


def models(path: Path) -> list[str]:
    """The models that a recipe is of. Raises BuildError where that cannot be read."""
    given = _toml(path)
    return sorted(given["steps"]) if isinstance(given.get("steps"), dict) else [path.parent.name]


def load(path: Path, model: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """What a recipe says of one of its models, with `overrides` in the place of some of it.

    Raises:
        BuildError: it does not make sense; the message names file and key.
    """
    given, prefix = _toml(path), ""
    if "steps" in given:
        prefix, given = f"steps.{model}", _step(path, given, model)
    if "layout" in given:
        raise BuildError(_OLD_LAYOUT.format(path=path, model=model))
    if overrides:
        given.pop("variants", None)  # They are the recipe's as it is written.
    family = given.get("family")
    is_step = family in STEPS
    given |= {k: v for k, v in (overrides or {}).items() if k == "source" or not is_step}
    if is_step and (extra := set(given) - {"family", "source", "keep"}):
        raise BuildError(
            f"{path}: family {family} has source and keep beside it; not {sorted(extra)[0]}"
        )
    if family == "encoder":
        raise BuildError(f'{path} is of 0.1: write family = "transformers" for "encoder"')
    return convert(Recipe, given, str(path), prefix)


def _step(path: Path, given: dict[str, Any], model: str) -> dict[str, Any]:
    """What an ensemble's recipe says of a model, with the source."""
    steps = given["steps"] if isinstance(given["steps"], dict) else {}
    step = steps.get(model)
    if not isinstance(step, dict):
        raise BuildError(f"{path}: steps.{model} must be a table")
    if "source" in step:
        raise BuildError(f"{path}: steps.{model}.source: all steps are of the recipe's one source")
    return step | {"source": convert(Ensemble, given | {"steps": {}}, str(path)).source}


_OLD_LAYOUT = (
    "{path} is of 0.1: [layout] stands in config.pbtxt only now (tensor_parallel_size,"
    " pipeline_parallel_size, instance_group). Take the table out of the recipe, and run"
    " `python -m build_scripts.build {model}`"
)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BuildError(f"{path} is not valid TOML: {error}") from None


def convert(kind: type[T], given: object, where: str, prefix: str = "") -> T:
    """A table of that kind. Raises BuildError with file, key and what is wrong."""
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        said, _, at = str(error).partition(" - at `$")
        key = f"{prefix}{at.rstrip('`')}".lstrip(".")
        raise BuildError(f"{where}: {key}{': ' if key else ''}{said}{_hint(said)}") from None


def _hint(said: str) -> str:
    """What was meant by an unknown field or value."""
    found = re.fullmatch(r"Object contains unknown field `(.+)`|Invalid enum value '(.*)'", said)
    if not found:
        return ""
    names = _FIELDS if found[1] else _VALUES
    close = difflib.get_close_matches(found[1] or found[2], names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


_FIELDS = tuple(dict.fromkeys(name for table in TABLES for name in table.__struct_fields__))
_VALUES = tuple(v for kind in (Family, Engine, Dtype, Compatibility) for v in get_args(kind))


def schema() -> dict[str, Any]:
    """Of recipe.toml, for editors: of one model, or of the steps of an ensemble."""
    kinds = [Recipe, Ensemble]
    either, tables = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": NAME,
        "anyOf": list(either),
        "$defs": tables,
    }


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
