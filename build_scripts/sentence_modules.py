"""modules.json: what a sentence-transformers folder makes of a text's hidden states.

Transformer, Pooling, and behind them Dense and Normalize in any order; Dropout, which does nothing
but in training. Every other module is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build_scripts import sentence_keys
from build_scripts.errors import BuildError
from build_scripts.sentence_keys import DENSE, POOLING, VECTOR, known
from build_scripts.storage import read_json, read_optional
from python_mp.sharding.families.task import ACTIVATIONS, Layer

FIRST = ("Transformer", "Pooling")
BEHIND = ("Dense", "Normalize", "Dropout")
LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Before 5.4 each had a switch of its own. In the order in which their vectors stand."""
MODES = tuple(LEGACY_MODES.values())
Modes = tuple[str, ...]


def read(folder: Path) -> tuple[Modes, tuple[Layer, ...]]:
    """The modes of the pooling, and what follows it.

    Raises:
        BuildError: it cannot be computed as sentence-transformers does; names the file.
    """
    if not (folder / "modules.json").is_file():
        return _alone(folder), ()
    modules = [_module(folder, said) for said in read_json(folder / "modules.json", list)]
    kinds = [kind for kind, _ in modules]
    if tuple(kinds[:2]) != FIRST or not set(kinds[2:]) <= set(BEHIND):
        raise BuildError(
            f"{folder / 'modules.json'} chains {', '.join(kinds)}; embed computes"
            f" {', '.join(FIRST)}, and behind them {', '.join(BEHIND)} in any order."
        )
    return _pooling(folder, modules[1][1]), tuple(
        _layer(kind, path) for kind, path in modules[2:] if kind != "Dropout"
    )


def _alone(folder: Path) -> Modes:
    """What sentence-transformers takes for a folder that has no modules.json, of which it then
    reads no file of its own."""
    for file in (*folder.glob("*sentence*.json"), *folder.glob("[0-9]_*/config.json")):
        if read_optional(file):
            raise BuildError(
                f"{file} says something, but {folder} has no modules.json, without which"
                " sentence-transformers does not read it: add modules.json, or remove the file."
            )
    config = read_optional(folder / "config.json")
    generates = str((config.get("architectures") or [""])[0]).endswith("ForCausalLM")
    return ("lasttoken",) if generates and config.get("is_causal", True) else ("mean",)


def _module(folder: Path, said: Any) -> tuple[str, Path]:
    """The name of its class, and its folder."""
    file = folder / "modules.json"
    if not isinstance(said, dict):
        raise BuildError(f"{file} has a module {said!r}, which is no object.")
    package, _, kind = str(said.get("type")).rpartition(".")
    path = Path(str(said.get("path", "")))
    if not package.startswith("sentence_transformers."):
        kind = str(said.get("type"))
    if said.get("kwargs"):
        raise BuildError(f"{file}: {kind} has kwargs, which embed has not.")
    if path.is_absolute() or ".." in path.parts:
        raise BuildError(f"{file}: {kind} lies in {path}, which is not within the folder.")
    if kind == "Transformer" and path.parts:
        raise BuildError(
            f"{file} has its Transformer in {path}/: name that folder, with the other files in it,"
            " as the source."
        )
    return kind, folder / path


def _pooling(root: Path, folder: Path) -> Modes:
    file = folder / "config.json"
    if not file.is_file() or folder == root:
        raise BuildError(f"{file} must say how is pooled, and is not there: modules.json names it")
    said = read_optional(file)
    legacy = {mode: said.pop(key) for key, mode in LEGACY_MODES.items() if key in said}
    sentence_keys.refuse_unknown(file, said, POOLING)
    mode = said.get("pooling_mode", [mode for mode, on in legacy.items() if on] or "mean")
    modes = tuple(mode) if isinstance(mode, list) else (mode,)
    for each in modes:
        if each not in MODES:
            raise BuildError(f"{file}: pooling {each!r} is not known; there are {', '.join(MODES)}")
    if not modes:
        raise BuildError(f"{file}: pooling_mode is empty; there are {', '.join(MODES)}")
    return modes


def leaves_prompts_out(folder: Path) -> Path | None:
    """The file of a pooling that does, which `embed` cannot: it is not told their length."""
    for file in folder.glob("*/config.json"):
        if read_optional(file).get("include_prompt") is False:
            return file
    return None


def _layer(kind: str, folder: Path) -> Layer:
    file = folder / "config.json"
    if kind == "Normalize":
        known(file, VECTOR)
        return Layer("Normalize")
    said = known(file, DENSE)
    sizes = [sentence_keys.whole(file, said, key) for key in ("in_features", "out_features")]
    if None in sizes:
        raise BuildError(f"{file} must say in_features and out_features")
    return Layer(
        "Dense",
        folder.name,
        inputs=sizes[0] or 0,
        outputs=sizes[1] or 0,
        bias=bool(said.get("bias", True)),
        residual=bool(said.get("use_residual", False)),
        activation=_activation(file, said),
    )


def _activation(file: Path, said: Mapping[str, Any]) -> str:
    path = str(said.get("activation_function", "torch.nn.Tanh"))
    package, _, name = path.rpartition(".")
    of_torch = package == "torch.nn" or package.startswith("torch.nn.modules.")
    if name not in ACTIVATIONS or not of_torch:
        raise BuildError(
            f"{file}: activation_function is {path!r}; embed has torch.nn's"
            f" {', '.join(ACTIVATIONS)}."
        )
    return name
