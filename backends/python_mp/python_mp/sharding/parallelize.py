"""A torch module that knows nothing of ranks, split among them by a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..model.errors import LoadError
from .gathering import GatheredLinear, ScatteredLinear, VocabularyLinear
from .layers import (
    ColumnParallelEmbedding,
    ColumnParallelLinear,
    JoinedLinear,
    LayerNorm,
    Product,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from .split_plan import Plan, Split, splits, unused
from .tensor_parallel import TensorParallel
from .weights import Weights

LOADED = (
    ColumnParallelEmbedding,
    ColumnParallelLinear,
    LayerNorm,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabularyLinear,
)


def parallelize(module: nn.Module, plan: Plan, shard: TensorParallel) -> nn.Module:
    """Splits the linears and embeddings that the plan names, and loads all weights.

    Args:
        module: changed in place. Made on the meta device it takes no memory of its own before.

    Raises:
        LoadError: the plan does not fit the module, or the weights do not.
    """
    names = [name for name, _ in module.named_modules(remove_duplicate=False)]
    for pattern in unused(plan, names):
        raise LoadError(f"the plan's {pattern} is no part of the module")
    split(module, splits(plan, names), shard)
    load_weights(module, shard.weights)
    return module


def split(
    module: nn.Module,
    found: Mapping[str, Split],
    shard: TensorParallel,
    joined: Sequence[Sequence[str]] = (),
) -> None:
    """Replaces the layers of these names by parallel ones, with their weights.

    Args:
        joined: last parts of the names of linears of one parent that are given the same input,
            (q_proj, k_proj, v_proj): they become one product.
    """
    modules, left = dict(module.named_modules(remove_duplicate=False)), dict(found)
    for name in found:
        _check(modules[name], name, shard)
    for names in list(_together(left, joined)):
        _replace_joined(module, names, left, shard)
        for name in names:
            del left[name]
    for same in _same(modules, left):
        layer = _layer(modules[same[0]], same[0], left[same[0]], shard)
        for name in same:
            _replace(module, name, layer)
    if found and any(isinstance(each, nn.TransformerEncoderLayer) for each in modules.values()):
        torch.backends.mha.set_fastpath_enabled(False)  # It would read our weights as whole ones.


def load_weights(module: nn.Module, weights: Weights) -> None:
    """Gives every parameter and buffer its tensor of the checkpoint, wherever it is, but for those
    of our own layers, which have loaded theirs."""
    loaded: dict[int, nn.Parameter] = {}  # What was tied stays so.
    for path, owner in module.named_modules():
        if isinstance(owner, LOADED):
            continue
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                if id(parameter) not in loaded:
                    tensor = _whole(weights, f"{path}.{name}".lstrip("."), parameter)
                    loaded[id(parameter)] = nn.Parameter(tensor, requires_grad=False)
                setattr(owner, name, loaded[id(parameter)])  # An LSTM looks whether one is set.
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and name not in owner._non_persistent_buffers_set:
                owner._buffers[name] = _whole(weights, f"{path}.{name}".lstrip("."), buffer)


def _whole(weights: Weights, name: str, wanted: Tensor) -> Tensor:
    tensor = weights.full(name)
    if tensor.shape != wanted.shape:
        raise LoadError(f"{name} is {list(tensor.shape)}; the module wants {list(wanted.shape)}")
    return tensor


def _check(was: nn.Module, name: str, shard: TensorParallel) -> None:
    """Raises LoadError where it is no layer that can be split, or the checkpoint's tensors are not
    those of the layer."""
    if was._forward_hooks or was._forward_pre_hooks:
        raise LoadError(f"{name} has hooks, which would be lost: it cannot be split")
    for last, wanted in was._parameters.items():
        whole = f"{name}.{last}"
        if wanted is not None and shard.weights.shape(whole) != tuple(wanted.shape):
            found = list(shard.weights.shape(whole))
            raise LoadError(f"{whole} is {found}; the module wants {list(wanted.shape)}")
    if was._parameters.get("bias", 0) is None and f"{name}.bias" in shard.weights:
        raise LoadError(f"the module has no {name}.bias, which the weights have")


def _same(modules: Mapping[str, nn.Module], found: Mapping[str, Split]) -> list[list[str]]:
    """The names, those of one module together. Raises LoadError where they are split differently,
    or one of its names is left whole."""
    names: dict[int, list[str]] = {}
    for name, module in modules.items():
        names.setdefault(id(module), []).append(name)
    groups = {id(modules[name]): names[id(modules[name])] for name in found}
    for same in groups.values():
        if len({found.get(name) for name in same}) > 1:
            raise LoadError(f"{' and '.join(same)} are one module: the plan must split them alike")
    return list(groups.values())


def _together(found: dict[str, Split], joined: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    for name in list(found):
        parent, _, last = name.rpartition(".")
        for lasts in joined:
            names = [f"{parent}.{each}" for each in lasts]
            ways = {found[each].way if each in found else None for each in names}
            if last == lasts[0] and ways == {"colwise"}:
                yield names


def _replace_joined(
    module: nn.Module, names: list[str], found: dict[str, Split], shard: TensorParallel
) -> None:
    cuts = [found[name].cut for name in names]
    product = Product(ColumnParallelLinear(shard, *names, cuts=cuts))
    for index, name in enumerate(names):
        _replace(module, name, JoinedLinear(product, index))


def _layer(was: nn.Module, name: str, split: Split, shard: TensorParallel) -> nn.Module:
    kind = _kind(was)
    if split.way == "vocabulary" and type(was) is nn.Embedding:
        return VocabParallelEmbedding(shard, name, tied=split.tied)
    if split.way == "colwise" and type(was) is nn.Embedding:
        return ColumnParallelEmbedding(shard, name, split.cut)
    if split.way == "vocabulary" or not kind:
        what = type(was).__name__
        raise LoadError(f"{name} is a {what}, which cannot be split {split.way}: leave it whole")
    transposed = kind == "Conv1D"
    match split.way:
        case "colwise":
            return ColumnParallelLinear(shard, name, cuts=[split.cut], transposed=transposed)
        case "colwise_gather_output":
            return GatheredLinear(shard, name, transposed=transposed)
        case "rowwise_split_input":
            return ScatteredLinear(shard, name, transposed=transposed)
    return RowParallelLinear(shard, name, split.cut, transposed=transposed)


def _kind(was: nn.Module) -> str:
    """Linear, or transformers' Conv1D; not what somebody made of one, which computes otherwise."""
    if type(was) is nn.Linear:
        return "Linear"
    is_conv = (type(was).__module__, type(was).__name__) == ("transformers.pytorch_utils", "Conv1D")
    return "Conv1D" if is_conv else ""


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)
