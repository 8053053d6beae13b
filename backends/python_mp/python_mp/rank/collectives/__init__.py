"""How the ranks of one replica exchange tensors.

| kind   | between                           | by                                          |
|--------|-----------------------------------|---------------------------------------------|
| `shm`  | CPU ranks of one host             | the C extension, over one shared mapping    |
|        | and of several                    | that, and TCP between one rank of each host |
| `gloo` | CPU ranks without the extension   | torch.distributed over TCP                  |
| `nccl` | CUDA ranks                        | torch.distributed over NVLink, PCIe, TCP    |
| `auto` | nccl on CUDA, else shm, else gloo |                                             |
"""

from __future__ import annotations

import importlib
import logging

import torch
from torch.distributed.distributed_c10d import Store

from .communicator import Alone, Communicator, Place

__all__ = ["Communicator", "connect"]

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 60
"""With a peer that is gone, where a group may hang for ever."""


def connect(
    kind: str,
    *,
    tensor_rank: int,
    tensor_size: int,
    stage: int = 0,
    stages: int = 1,
    region: str | None = None,
    store: str | Store | None = None,
    device: torch.device | None = None,
    hang_seconds: int = 0,
    hosts: int = 1,
    address: str = "",
) -> Communicator:
    """Join the other ranks of this replica; every one of them calls this with the same sizes.

    `region` is the file `shm` maps, the same for all ranks of a host, empty at first; a parent that
    writes 1 into its first byte ends every rank's wait with `GroupAborted`. `store` is a file, or
    torch's store, where the ranks of `gloo` and `nccl` find each other. A single rank needs
    neither. `hang_seconds` is how long a group may be without progress, 0 for ever.

    On several `hosts` the ranks stand in equal blocks; `address` is that of this rank's host, and
    all of them need a store that is theirs only.

    Raises ValueError if the kind is unknown or what it needs is missing, ImportError if it is
    `shm` and the extension is not built.
    """
    device = device or torch.device("cpu")
    place = Place(tensor_rank, tensor_size, stage, stages, hosts)
    kind = _choose(device) if kind == "auto" else kind
    if place.world_size == 1:
        return Alone()
    if kind == "shm":
        if region is None:
            raise ValueError("collectives over shared memory need a region")
        inside = _inside(place.inside, region)
        if hosts == 1:
            return inside
        from .over_hosts import OverHosts

        if not (isinstance(store, Store) and address):
            raise ValueError("ranks of several hosts need torch's store, and this host's address")
        patience = hang_seconds or _PATIENCE_SECONDS
        return OverHosts(
            place, inside, store=store, address=address, region=region, patience=patience
        )
    if kind in ("gloo", "nccl"):
        from .distributed import Distributed

        if store is None:
            raise ValueError(f"collectives over {kind} need a store")
        return Distributed(kind, place, store, device, hang_seconds, address)
    raise ValueError(f"no such collectives: {kind!r}; there are auto, shm, gloo and nccl")


def _choose(device: torch.device) -> str:
    if device.type == "cuda":
        return "nccl"
    try:
        importlib.import_module("python_mp.rank._shm")
    except ImportError as error:
        log.warning("the ranks use gloo, which is far slower than the C extension: %s", error)
        return "gloo"
    return "shm"


def _inside(place: Place, region: str) -> Communicator:
    if place.world_size == 1:
        return Alone()
    from .shared_memory import SharedMemory

    return SharedMemory(place, region)
