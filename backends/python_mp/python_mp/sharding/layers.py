"""Tensor-parallel layers after Megatron-LM (arXiv:1909.08053, section 3). Each loads its own slice.

y = ColumnParallel(x)    each rank has some of the columns of y
z = RowParallel(y)       each rank has a part of the sum; one all-reduce makes it whole
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cut import EVEN, Cut, uneven
from .panels import in_panels, rows_of, taken
from .products import linear
from .tensor_parallel import TensorParallel
from .weights import Weights


def product_weight(
    shard: TensorParallel,
    names: Sequence[str],
    dim: int,
    cuts: Sequence[Cut | None],
    transposed: bool = False,
) -> Tensor:
    """The rank's part of a weight [outputs, inputs] that is multiplied with and not looked at."""

    def make(weights: Weights) -> Tensor:
        return in_panels(_part(shard, weights, names, dim, cuts, transposed))

    return taken(shard.weights.made(f"{'+'.join(names)}:product", make), shard.panels)


def _part(
    shard: TensorParallel,
    weights: Weights,
    names: Sequence[str],
    dim: int,
    cuts: Sequence[Cut | None],
    transposed: bool = False,
    widths: Sequence[int] = (),
) -> Tensor:
    """The rank's shares of these tensors' dimension `dim`, joined there.

    Args:
        widths: of the shares, so that zeros stand for tensors that are not there.
    """

    def make(weights: Weights) -> Tensor:
        found = {
            name: weights.split(name, dim, shard.rank, shard.size, cut)
            for name, cut in zip(names, cuts, strict=True)
            if not widths or name in weights
        }
        zeros = next(iter(found.values())).new_zeros
        parts = [found[n] if n in found else zeros(widths[at]) for at, n in enumerate(names)]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
        return joined.t().contiguous() if transposed else joined

    plain = len(names) == 1 and not transposed
    return make(weights) if plain else weights.made("+".join(names), make)


class ColumnParallelLinear(nn.Module):
    """[..., in] -> [..., out/size]. Several names are stacked into one product (q, k, v).

    Args:
        cuts: how each name's rows are shared; without them each must divide.
        transposed: the tensors are [in, out], as in transformers' Conv1D.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, shard: TensorParallel, *names: str, cuts: Sequence[Cut] = (), transposed: bool = False
    ) -> None:
        super().__init__()
        wholes = [shard.weights.shape(f"{name}.weight")[transposed] for name in names]
        for name, whole in zip(names if not cuts else (), wholes, strict=False):
            shard.share(whole, f"rows of {name}.weight")
        cuts = cuts or [EVEN] * len(names)
        self.widths = [
            cut.share(whole, shard.size) for cut, whole in zip(cuts, wholes, strict=True)
        ]
        weights = [f"{name}.weight" for name in names]
        weight = product_weight(shard, weights, int(transposed), cuts, transposed)
        self.register_buffer("weight", weight)
        biases = [f"{name}.bias" for name in names]
        has_bias = any(name in shard.weights for name in biases)
        bias = None
        if has_bias:
            bias = _part(shard, shard.weights, biases, 0, cuts, widths=self.widths)
        self.register_buffer("bias", bias)

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """This rank's."""
        return sum(self.widths)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class JoinedLinear(nn.Module):
    """One of several linears of the same input, which are one product: whoever is called first
    makes it, and the others take their columns of it."""

    def __init__(self, product: Product, index: int) -> None:
        super().__init__()
        self.linear = product.linear if index == 0 else None  # That its weights have one owner.
        self._product = product
        self._index = index

    @property
    def out_features(self) -> int:
        """Its own columns."""
        return self._product.linear.widths[self._index]

    @property
    def weight(self) -> Tensor:
        """Of all of them, for modules that ask for its dtype."""
        return self._product.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self._product.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self._product.columns(x, self._index)


class Product:
    """What the layers of a `JoinedLinear` share."""

    def __init__(self, linear: ColumnParallelLinear) -> None:
        self.linear = linear
        self._x: Tensor | None = None
        self._left: dict[int, Tensor] = {}

    def columns(self, x: Tensor, index: int) -> Tensor:
        """Of the product with `x`, those of the name number `index`."""
        if x is not self._x or index not in self._left:
            parts = self.linear(x).split_with_sizes(self.linear.widths, -1)
            self._x, self._left = x, dict(enumerate(parts))
        mine = self._left.pop(index)
        if not self._left:
            self._x = None
        return mine


class RowParallelLinear(nn.Module):
    """[..., in/size] -> [..., out], the same on every rank.

    Args:
        cut: how the columns are shared; without one they must divide.
        transposed: the tensor is [in, out], as in transformers' Conv1D.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, shard: TensorParallel, name: str, cut: Cut | None = None, *, transposed: bool = False
    ) -> None:
        super().__init__()
        self.shard = shard
        weights, dim = shard.weights, int(not transposed)
        if cut is None:
            shard.share(weights.shape(f"{name}.weight")[dim], f"columns of {name}.weight")
        weight = product_weight(shard, [f"{name}.weight"], dim, [cut], transposed)
        self.register_buffer("weight", weight)
        bias = weights.full(f"{name}.bias") if f"{name}.bias" in weights else None
        self.register_buffer("bias", bias)

    @property
    def in_features(self) -> int:
        """This rank's."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.shard.size == 1:
            return linear(x, self.weight, self.bias)
        y = self.shard.all_reduce(linear(x, self.weight, None))
        return y if self.bias is None else y.add_(self.bias)


class VocabParallelEmbedding(nn.Module):
    """Token ids [...] -> [..., hidden]. Each rank holds a block of the vocabulary's rows.

    Args:
        tied: a head multiplies with the same weight, which lies as that wants it.
    """

    weight: Tensor

    def __init__(self, shard: TensorParallel, name: str, *, tied: bool = False) -> None:
        super().__init__()
        self.shard = shard
        self.vocabulary = shard.weights.shape(f"{name}.weight")[0]
        mine = uneven(self.vocabulary, shard.rank, shard.size)
        self.start, self.stop = mine.start, mine.stop
        name = f"{name}.weight"
        if tied:
            weight = product_weight(shard, [name], 0, [None])
        else:
            weight = shard.weights.split(name, 0, shard.rank, shard.size)
        self.register_buffer("weight", weight)

    def forward(self, ids: Tensor) -> Tensor:
        if self.shard.size == 1:
            return rows_of(self.weight, ids)
        mine = (ids >= self.start) & (ids < self.stop)
        rows = rows_of(self.weight, (ids - self.start) * mine) * mine[..., None]
        return self.shard.all_reduce(rows)


class ColumnParallelEmbedding(nn.Module):
    """Ids [...] -> [..., width/size]. Each rank holds some columns of the table."""

    weight: Tensor

    def __init__(self, shard: TensorParallel, name: str, cut: Cut) -> None:
        super().__init__()
        weight = shard.weights.split(f"{name}.weight", 1, shard.rank, shard.size, cut)
        self.register_buffer("weight", weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class LayerNorm(nn.Module):
    """Over the last dimension; every rank has all of it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, shard: TensorParallel, name: str, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("weight", shard.weights.full(f"{name}.weight"))
        self.register_buffer("bias", shard.weights.full(f"{name}.bias"))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
