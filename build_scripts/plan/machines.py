"""Machines that are not here, by a few words (gpus=8,nvlink,hosts=16; cores=16,hosts=4), and their
constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from build_scripts.errors import BuildError
from build_scripts.plan.alpha_beta import Link, Machine

MOST_DEVICES = 1024
NUMBERS = {"gpus": 0, "hosts": 1, "cores": 16, "network": 400}
WORDS = ("nvlink", "pcie")
WRITE = (
    "write gpus=N, and as you like nvlink or pcie, hosts=N, cores=N (of a host), network=N (Gb/s);"
    " without gpus the cores compute"
)
SHARE_OF_PRODUCTS = {384: 0.21, 1024: 0.60}
"""By a model's width."""


@dataclass(frozen=True)
class Constant:
    value: float
    unit: str
    source: str


H200 = "one H200, docs/gpu.md"
NCCL = "NCCL's own model, src/graph/tuning.cc at b647562: not measured here"
CONSTANTS: Mapping[str, Constant] = {
    "products": Constant(776e12, "FLOP/s in bfloat16", H200),
    "layer": Constant(5e-5, "s a layer of a batch", f"{H200}: 0.31 ms for one text, 6 layers"),
    "memory": Constant(80e9, "bytes of a GPU", "data sheet of the H100: not measured here"),
    "request": Constant(0.69e-3, "s of a core a request", "echo on 2 cores, docs/costs.md"),
    "undivided": Constant(
        0.05, "share", "norms and sums of a layer, by their bytes: not measured here"
    ),
    "LL start": Constant(6.6e-6, "s", NCCL),
    "simple start": Constant(8.4e-6, "s", NCCL),
    "nvlink LL hop": Constant(0.6e-6, "s", NCCL),
    "nvlink simple hop": Constant(3.4e-6, "s", NCCL),
    "nvlink": Constant(
        450e9, "bytes/s a way", "data sheet of the H100, NVLink 4: not measured here"
    ),
    "pcie LL hop": Constant(1.0e-6, "s", NCCL),
    "pcie simple hop": Constant(5.7e-6, "s", NCCL),
    "pcie": Constant(64e9, "bytes/s a way", "PCI Express 5.0 x16: not measured here"),
    "network LL hop": Constant(2.7e-6, "s", NCCL),
    "network simple hop": Constant(14e-6, "s", NCCL),
    "LL share": Constant(0.25, "of a link's bandwidth, one host or several", NCCL),
}
"""Of GPUs."""
CORES = "MiniLM on 2 cores with AVX-512, docs/costs.md"
BETWEEN = "2 x 2 ranks in network namespaces of one machine, `make bench ARGS=collectives`"
ON_CORES: Mapping[str, Constant] = {
    "core": Constant(150e9, "FLOP/s in float32", f"{CORES}: full load"),
    "core's layer": Constant(3e-4, "s a layer of a batch", f"{CORES}: one text"),
    "request": CONSTANTS["request"],
    "undivided": CONSTANTS["undivided"],
    "memory start": Constant(1e-6, "s of an all-reduce inside a host", BETWEEN),
    "memory bandwidth": Constant(12e9, "bytes/s", BETWEEN),
    "TCP start": Constant(130e-6, "s of an all-reduce between hosts", BETWEEN),
    "TCP bandwidth": Constant(0.7e9, "bytes/s, or the network's if that is less", BETWEEN),
}


@dataclass(frozen=True)
class Size:
    """Of a model: linear weights, layers, width, heads, and bytes of all weights in 16 bits."""

    weights: int
    layers: int
    width: int
    heads: int
    nbytes: int


def read(words: str) -> dict[str, str | int]:
    """What was asked for, completed. Raises BuildError for what is no machine."""
    said: dict[str, str | int] = {**NUMBERS, "link": "pcie"}
    for word in words.split(","):
        name, has, number = word.strip().partition("=")
        if not has and name in WORDS:
            said["link"] = name
        elif name in NUMBERS and number.isascii() and number.isdecimal() and 0 < len(number) < 6:
            said[name] = int(number)
        else:
            raise BuildError(f"--machine {words}: {word!r} says nothing; {WRITE}")
    says_what_computes = said["gpus"] or "cores" in words
    devices = int(said["gpus"] or said["cores"]) * int(said["hosts"])
    none = not (says_what_computes and said["cores"] and said["network"])
    if none or not 0 < devices <= MOST_DEVICES:
        raise BuildError(
            f"--machine {words}: 1 to {MOST_DEVICES} GPUs or cores can be planned; {WRITE}"
        )
    return said


def constants(said: Mapping[str, str | int]) -> Mapping[str, Constant]:
    """Those by which this machine is made."""
    return CONSTANTS if said["gpus"] else ON_CORES


def machine(said: Mapping[str, str | int], size: Size) -> Machine:
    """For this model."""
    if not said["gpus"]:
        return _of_cores(said, size)
    speed = _value("products") * share_of_products(size.width)
    return Machine(
        devices=int(said["gpus"]),
        hosts=int(said["hosts"]),
        batch=_value("layer") * size.layers,
        token=2 * size.weights / speed,
        undivided=_value("undivided"),
        single=1.0,
        near=_links(str(said["link"]), _value(str(said["link"]))),
        far=_links("network", int(said["network"]) / 8 * 1e9),
        request=_value("request"),
        cores=int(said["cores"]),
        is_shared=False,
    )


def _of_cores(said: Mapping[str, str | int], size: Size) -> Machine:
    value = {name: each.value for name, each in ON_CORES.items()}
    network = min(value["TCP bandwidth"], int(said["network"]) / 8 * 1e9)
    return Machine(
        devices=int(said["cores"]),
        hosts=int(said["hosts"]),
        batch=value["core's layer"] * size.layers,
        token=2 * size.weights / value["core"],
        undivided=value["undivided"],
        single=value["undivided"],
        near=[Link(value["memory start"], 0.0, value["memory bandwidth"])],
        far=[Link(value["TCP start"], 0.0, network)],
        request=value["request"],
        cores=int(said["cores"]),
        is_shared=True,
    )


def share_of_products(width: int) -> float:
    """What a layer of this width reaches of the products' speed; between the two that were measured
    by the logarithm of the width, beyond them the same."""
    (low, least), (high, most) = sorted(SHARE_OF_PRODUCTS.items())
    part = math.log(width / low) / math.log(high / low)
    return least + (most - least) * min(1.0, max(0.0, part))


def _links(name: str, bandwidth: float) -> list[Link]:
    return [
        Link(_value("LL start"), _value(f"{name} LL hop"), bandwidth * _value("LL share")),
        Link(_value("simple start"), _value(f"{name} simple hop"), bandwidth),
    ]


def _value(name: str) -> float:
    return CONSTANTS[name].value
