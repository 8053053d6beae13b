from typing import Any

def instruction_sets() -> tuple[str, ...]: ...
def is_amd() -> bool: ...
def choose(which: int, /) -> None: ...
def multiply(
    y: int,
    x: int,
    weight: int,
    bias: int,
    rows: int,
    outputs: int,
    inputs: int,
    bfloat16: bool,
    threads: int,
    many: bool,
    /,
) -> None: ...
def combine(
    what: int,
    y: int,
    a: int,
    b: int,
    rows: int,
    width: int,
    y_stride: int,
    a_stride: int,
    b_stride: int,
    factor: float,
    threads: int,
    /,
) -> None: ...
def record(calls: list[tuple[Any, ...]] | None, /) -> None: ...
def program(rows: int, calls: list[tuple[str, tuple[Any, ...]]], /) -> object: ...
def run(
    program: object,
    rows: int,
    places: int,
    table: int,
    contexts: int,
    starts: int,
    sequences: int,
    width: int,
    threads: int,
    /,
) -> None: ...
def store(
    keys: int,
    values: int,
    k: int,
    v: int,
    places: int,
    tokens: int,
    blocks: int,
    kv_heads: int,
    head: int,
    filled: int,
    bfloat16: bool,
    /,
) -> None: ...
def attend(
    out: int,
    q: int,
    keys: int,
    values: int,
    table: int,
    contexts: int,
    starts: int,
    sinks: int,
    tokens: int,
    sequences: int,
    width: int,
    blocks: int,
    heads: int,
    kv_heads: int,
    head: int,
    filled: int,
    window: int,
    causal: bool,
    scale: float,
    softcap: float,
    bfloat16: bool,
    threads: int,
    /,
) -> None: ...
def attend_packed(
    out: int,
    q: int,
    k: int,
    v: int,
    starts: int,
    sinks: int,
    tokens: int,
    sequences: int,
    heads: int,
    kv_heads: int,
    head: int,
    q_stride: int,
    k_stride: int,
    v_stride: int,
    window: int,
    causal: bool,
    scale: float,
    softcap: float,
    threads: int,
    /,
) -> None: ...
def standardise(
    y: int,
    a: int,
    b: int,
    gain: int,
    bias: int,
    rows: int,
    width: int,
    epsilon: float,
    threads: int,
    /,
) -> None: ...
def normalise(
    y: int, x: int, gain: int, rows: int, width: int, epsilon: float, threads: int, /
) -> None: ...
def rotate(
    to: int,
    begin: int,
    cos: int,
    sin: int,
    tokens: int,
    heads: int,
    head: int,
    stride: int,
    threads: int,
    /,
) -> None: ...
