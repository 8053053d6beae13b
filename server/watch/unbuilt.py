"""Models that a recipe makes and that are not built yet. No server can load them; they are loaded
once they are there."""

import stat
import tomllib
from functools import lru_cache
from pathlib import Path

from python_mp.model import ensembles

RECIPE = "recipe.toml"


def models(repository: Path) -> dict[str, str]:
    """Their names, and of each the recipe's. A build publishes the models of a recipe one after
    another: as long as one of them has no version, all of them wait, and so do the ensembles that
    need them."""
    found: dict[str, str] = {}
    for recipe in repository.glob(f"*/{RECIPE}"):
        made = _made(recipe)
        if not all(_is_built(repository / each) for each in made):
            found |= dict.fromkeys(made, recipe.parent.name)
    configs = [*repository.glob(f"*/{ensembles.CONFIG}")] if found else []
    chains = {config.parent.name: ensembles.steps(config) for config in configs}
    while more := {
        name: found[step]
        for name in chains.keys() - found.keys()
        for step in chains[name] & found.keys()
    }:
        found |= more
    return found


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
