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
    scale: float,
    softcap: float,
    bfloat16: bool,
    threads: int,
    /,
) -> None: ...
