"""PyTorch modules as they are: the built-in family of a checkpoint, or the user's module.py."""

from __future__ import annotations

from torch import nn

from ...model.errors import LoadError
from ...model.rank_spec import RankSpec
from ...sharding.direct import call_directly
from ...sharding.shard import Shard
from ...sharding.source import Source
from ..stage import Compute, Stage


def load(spec: RankSpec) -> Stage:
    """Raises LoadError when the module or its weights cannot be loaded."""
    return Stage.load(spec, _module)


def _module(shard: Shard, source: Source) -> Compute:
    module = source.build(shard)
    if not isinstance(module, nn.Module):
        raise LoadError(f"build(shard) must return a module, a torch.nn.Module, not {module!r:.80}")
    module.eval()
    if callable(take_kernels := getattr(module, "take_kernels", None)):
        take_kernels()
    call_directly(module)
    shard.close_weights()
    return module
