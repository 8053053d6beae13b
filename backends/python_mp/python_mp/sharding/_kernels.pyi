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
