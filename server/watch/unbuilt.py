"""Models that a recipe makes and that are not built yet. No server can load them; they are loaded
once they are there."""

import stat
import tomllib
from functools import lru_cache
from pathlib import Path

from python_mp.model import ensembles

RECIPE = "recipe.toml"


def models(repository: Path) -> dict[str, str]:
    """Their names, and of each the recipe's: models that have no version, and the ensembles that
    need them. A build publishes the models of a recipe one after another; what it has made by then
    waits, too, as long as all ensembles that it is for do. A recipe that gains a step thus takes
    away nothing that its ensembles serve without it."""
    recipes = {recipe.parent.name: _made(recipe) for recipe in repository.glob(f"*/{RECIPE}")}
    found = {
        model: name
        for name, made in recipes.items()
        for model in made
        if not _is_built(repository / model)
    }
    if not found:
        return {}
    configs = repository.glob(f"*/{ensembles.CONFIG}")
    chains = {config.parent.name: ensembles.steps(config) for config in configs}
    while more := {
        name: found[step]
        for name in chains.keys() - found.keys()
        for step in chains[name] & found.keys()
    }:
        found |= more
    begun = {model: name for name in {*found.values()} for model in recipes[name]}
    return found | {
        model: begun[model] for model in begun if _is_for(model, chains) <= found.keys()
    }


def _is_for(model: str, chains: dict[str, set[str]]) -> set[str]:
    """The ensembles that need it; it itself where none does."""
    return {name for name, steps in chains.items() if model in steps} or {model}


def _is_built(folder: Path) -> bool:
    return any(path.name.isdecimal() for path in folder.glob("[0-9]*"))


def _made(recipe: Path) -> tuple[str, ...]:
    """The models that it makes; none where it cannot be read, which the build says."""
    try:
        state = recipe.stat()
        if not stat.S_ISREG(state.st_mode):  # to read a FIFO would take for ever
            return ()
        return _read(str(recipe), state.st_mtime_ns, state.st_size)
    except (OSError, ValueError):
        return ()


@lru_cache(maxsize=256)
def _read(recipe: str, *_state: int) -> tuple[str, ...]:
    steps = tomllib.loads(Path(recipe).read_text()).get("steps")
    return tuple(steps) if isinstance(steps, dict) else (Path(recipe).parent.name,)
